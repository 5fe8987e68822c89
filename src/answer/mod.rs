//! Query octets in, reply octets out: the hot path, whole.

mod records;

use crate::resolve::{NoTrace, Node, Outcome, Space, resolve};
use crate::wire::{
    CLASS_IN, HEADER_LEN, Header, Name, OPT_LEN, Query, Question, Reply, Section, extended_error, flags, rcode, rtype,
};
use crate::zone::{Asker, Caller, Zone};
use records::Writer;

/// How large a reply may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// A UDP datagram: what the client asked for, at least 512 octets (RFC 1035 section 4.2.1), at most `--udp-payload`.
    Datagram,
    /// A stream: 65,535 octets.
    Stream,
}

/// Which zone a question fell into, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ZoneClass {
    /// A cluster domain.
    Cluster,
    /// `in-addr.arpa` or `ip6.arpa`.
    Reverse,
    /// Short names.
    Short,
    /// Everything else, and what could not be read.
    Other,
}

/// What to do with a message. It carries what metrics need, so that answering touches none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send `reply[..len]`.
    Reply {
        /// Octets.
        len: usize,
        /// Extended response code.
        rcode: u16,
        /// Type asked for; 0 if the question could not be read.
        qtype: u16,
        /// Where the question fell.
        zone_class: ZoneClass,
    },
    /// Ask others.
    Forward(ForwardRequest),
    /// Send nothing.
    Drop,
}

/// A question that the table alone does not answer, as far as it has been read. Its name is the [`Scratch`]'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardRequest {
    /// Header and question are `query[..end]`.
    pub end: u16,
    /// Type asked for.
    pub qtype: u16,
    /// The largest reply that may be sent, in octets.
    pub limit: u16,
    /// The header's flags as asked.
    pub flags: u16,
    /// What the OPT record of the reply has for flags, if the client speaks EDNS.
    pub edns: Option<u8>,
    /// Why others are to be asked.
    pub reason: ForwardReason,
}

/// Why others are to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardReason {
    /// The name is not the cluster's.
    Outside,
    /// The name leads out of the cluster: an ExternalName.
    LeadsOut,
    /// The name is the first of a search list whose others are to be tried (`--complete-search`).
    Search,
}

/// What a thread keeps from one answer to the next.
pub struct Scratch {
    /// Where the name that is asked for is read into.
    name: Name,
    /// Which record of an rrset comes first: another from one answer to the next.
    turn: u16,
    /// Whether others may be asked for what the table does not answer.
    forwards: bool,
}

impl Scratch {
    /// Records take turns from this one on.
    pub fn new(turn: u16) -> Scratch {
        Scratch { name: Name::empty(), turn, forwards: true }
    }

    /// The same for answers from the table and nothing else: names of others are refused, and what leads out of the
    /// cluster ends where it does.
    pub fn alone(turn: u16) -> Scratch {
        Scratch { forwards: false, ..Scratch::new(turn) }
    }

    /// The name that was asked for last.
    pub fn name(&self) -> &Name {
        &self.name
    }
}

/// Answers one DNS message. Pure and total: no I/O, no lock, no allocation, no panic.
pub fn answer(
    zone: &Zone,
    caller: Caller<'_>,
    query: &[u8],
    limit: Limit,
    scratch: &mut Scratch,
    reply: &mut [u8],
) -> Verdict {
    let Some(header) = Header::parse(query) else { return Verdict::Drop };
    if header.flags & (flags::QR | flags::OPCODE) != 0 {
        return match header.is_reply() {
            true => Verdict::Drop,
            false => refuse(zone, query, header, rcode::NOTIMP, reply),
        };
    }
    let Scratch { name, turn, forwards } = scratch;
    *turn = turn.wrapping_add(1);
    let Ok(Query { question, edns }) = Query::parse(query, header, name) else {
        return refuse(zone, query, header, rcode::FORMERR, reply);
    };
    let settings = &*zone.settings;
    let limit = match (limit, edns) {
        (Limit::Stream, _) => usize::from(u16::MAX),
        (Limit::Datagram, None) => 512,
        (Limit::Datagram, Some(edns)) => usize::from(edns.payload.max(512).min(settings.udp_payload)),
    };
    let reserved = if edns.is_some() { OPT_LEN } else { 0 };
    let flags = reply_flags(zone, header);
    let Some(mut out) = Reply::start(reply, query, question.end, flags, limit, reserved) else { return Verdict::Drop };
    let qtype = question.qtype;
    let forward = |reason| {
        let (end, limit) = (question.end as u16, limit as u16);
        let edns = edns.map(|edns| edns.reply_flags());
        Verdict::Forward(ForwardRequest { end, qtype, limit, flags: header.flags, edns, reason })
    };
    let mut options: &[u8] = &[];
    let (rcode, zone_class) = if edns.is_some_and(|edns| edns.version > 0) {
        (rcode::BADVERS, ZoneClass::Other)
    } else if question.qclass != CLASS_IN || matches!(qtype, rtype::AXFR | rtype::IXFR) || !zone.allows(caller) {
        (rcode::REFUSED, ZoneClass::Other)
    } else {
        let asker = Asker::new(zone, caller);
        match resolve(zone, &asker, name, &mut NoTrace) {
            // Nearly every answer is one record of a Service.
            Outcome::Found(Node::Service(service), space) if service.push_lone(qtype, &mut out) => {
                out.set_flags(flags::AA);
                out.count(Section::Answer, 1);
                (rcode::NOERROR, zone_class(space))
            }
            Outcome::Found(node, space) => {
                let mut writer = Writer::new(zone, &asker, &mut out, space, *turn, name);
                let rcode = writer.found(node, qtype);
                if writer.leads_out && *forwards {
                    return forward(ForwardReason::LeadsOut);
                }
                (rcode, zone_class(space))
            }
            Outcome::Missing(space) => {
                if settings.complete_search && *forwards && is_searched(&asker, name, space) {
                    return forward(ForwardReason::Search);
                }
                (Writer::new(zone, &asker, &mut out, space, *turn, name).missing(space), zone_class(space))
            }
            Outcome::NotReady => {
                options = &extended_error::NOT_READY;
                (rcode::SERVFAIL, ZoneClass::Other)
            }
            Outcome::NotOurs if *forwards && settings.is_forwarded(name) => return forward(ForwardReason::Outside),
            Outcome::NotOurs => (rcode::REFUSED, ZoneClass::Other),
        }
    };
    let own = edns.map(|edns| (settings.udp_payload, edns.reply_flags()));
    Verdict::Reply { len: out.finish(rcode, true, own, options), rcode, qtype, zone_class }
}

#[inline(always)]
fn zone_class(space: Space) -> ZoneClass {
    match space {
        Space::Domain { .. } => ZoneClass::Cluster,
        Space::Reverse { .. } => ZoneClass::Reverse,
        Space::Short => ZoneClass::Short,
    }
}

/// Whether a name that does not exist is `NAME.C.svc.Z` of a caller in `C`: what the first entry of a pod's search list
/// makes of `NAME`.
#[cold]
fn is_searched(asker: &Asker<'_>, name: &Name, space: Space) -> bool {
    let Space::Domain { above: above @ 3.., .. } = space else { return false };
    name.label(above - 1) == b"\x03svc" && asker.namespace().is_some_and(|own| own.label() == name.label(above - 2))
}

/// RD and CD come back as they were, RA says whether anything is forwarded, everything else is cleared.
#[inline(always)]
fn reply_flags(zone: &Zone, header: Header) -> u16 {
    let available = if zone.settings.forwarding { flags::RA } else { 0 };
    flags::QR | header.flags & (flags::OPCODE | flags::RD | flags::CD) | available
}

/// A reply to what is no query that can be answered. The question comes back if it can be read; nothing else of such
/// a message is believed, so there is no OPT.
#[cold]
fn refuse(zone: &Zone, query: &[u8], header: Header, rcode: u16, reply: &mut [u8]) -> Verdict {
    let end = match Question::parse(query, header, &mut Name::empty()) {
        Ok(question) if rcode == rcode::NOTIMP => question.end,
        _ => HEADER_LEN,
    };
    match Reply::start(reply, query, end, reply_flags(zone, header), 512, 0) {
        Some(mut out) => {
            let len = out.finish(rcode, end > HEADER_LEN, None, &[]);
            Verdict::Reply { len, rcode, qtype: 0, zone_class: ZoneClass::Other }
        }
        None => Verdict::Drop,
    }
}
