//! Turns the octets of a query into the octets of a reply: the complete hot path.

mod records;

use crate::resolve::{NoTrace, Node, Outcome, Space, resolve};
use crate::wire::{
    CLASS_IN, HEADER_LEN, Header, Name, OPT_LEN, Query, Question, Reply, Section, extended_error, flags, rcode, rtype,
};
use crate::zone::{Caller, LazyCaller, Zone};
use records::Writer;

/// The size limit of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// A UDP datagram: the size advertised by the client, at least 512 octets (RFC 1035 section 4.2.1) and at most
    /// `--udp-payload`.
    Datagram,
    /// A stream: 65,535 octets.
    Stream,
}

/// The class of the zone that a question belongs to, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ZoneClass {
    /// A cluster domain.
    Cluster,
    /// `in-addr.arpa` or `ip6.arpa`.
    Reverse,
    /// Short names.
    Short,
    /// Everything else, including queries that could not be parsed.
    Other,
}

/// The action to take for a message. It carries the values for metrics, so that answering updates no counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send `reply[..len]`.
    Reply {
        /// Length of the reply in octets.
        len: usize,
        /// Extended response code.
        rcode: u16,
        /// Query type; 0 if the query could not be parsed.
        qtype: u16,
        /// Zone class of the question.
        zone_class: ZoneClass,
    },
    /// Forward the query.
    Forward(ForwardRequest),
    /// Send nothing.
    Drop,
}

/// A parsed query that the zone does not answer completely. Its name is in the [`Scratch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardRequest {
    /// Header and question are `query[..end]`.
    pub end: u16,
    /// Query type.
    pub qtype: u16,
    /// Maximum length of the reply in octets.
    pub limit: u16,
    /// Header flags of the query.
    pub flags: u16,
    /// Flags for the OPT record of the reply, if the client uses EDNS.
    pub edns: Option<u8>,
    /// Why the query is forwarded.
    pub reason: ForwardReason,
}

/// The reason why a query is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardReason {
    /// The name is outside the cluster.
    Outside,
    /// The name is an ExternalName whose target is outside the cluster.
    LeadsOut,
    /// The name is the first candidate of a search list, and the others are tried next (`--complete-search`).
    Search,
}

/// Per-thread state that is reused from one query to the next.
pub struct Scratch {
    /// Buffer for the question's name.
    name: Name,
    /// Rotation of rrsets: determines the first record and advances with every query.
    turn: u16,
    /// Whether queries that the zone does not answer may be forwarded.
    may_forward: bool,
}

impl Scratch {
    /// Creates the state with an initial rotation of `turn`.
    pub fn new(turn: u16) -> Scratch {
        Scratch { name: Name::empty(), turn, may_forward: true }
    }

    /// Creates state for answers from the zone only: names outside the cluster are refused, and a CNAME chain ends
    /// where it leaves the cluster.
    pub fn zone_only(turn: u16) -> Scratch {
        Scratch { may_forward: false, ..Scratch::new(turn) }
    }

    /// The name in the latest question.
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
    let Scratch { name, turn, may_forward } = scratch;
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
        let lazy_caller = LazyCaller::new(zone, caller);
        match resolve(&lazy_caller, name, NoTrace) {
            // Nearly every answer is one record of a Service.
            Outcome::Found(Node::Service(service), space) if service.push_lone(qtype, &mut out) => {
                out.set_flags(flags::AA);
                out.count(Section::Answer, 1);
                (rcode::NOERROR, zone_class(space))
            }
            Outcome::Found(node, space) => {
                let mut writer = Writer::new(zone, &lazy_caller, &mut out, space, *turn, name);
                let rcode = writer.found(node, qtype);
                if writer.leads_out && *may_forward {
                    return forward(ForwardReason::LeadsOut);
                }
                (rcode, zone_class(space))
            }
            Outcome::Missing(space) => {
                if settings.complete_search && *may_forward && is_first_search_candidate(&lazy_caller, name, space) {
                    return forward(ForwardReason::Search);
                }
                (Writer::new(zone, &lazy_caller, &mut out, space, *turn, name).missing(space), zone_class(space))
            }
            Outcome::NotReady => {
                options = &extended_error::NOT_READY;
                (rcode::SERVFAIL, ZoneClass::Other)
            }
            Outcome::NotOurs if *may_forward && settings.is_forwarded(name) => return forward(ForwardReason::Outside),
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

/// Whether a nonexistent name is `NAME.C.svc.Z` from a caller in `C`, which is `NAME` with the first entry of a pod's
/// search list appended.
#[cold]
fn is_first_search_candidate(lazy_caller: &LazyCaller<'_>, name: &Name, space: Space) -> bool {
    let Space::Domain { above: above @ 3.., .. } = space else { return false };
    name.label(above - 1) == b"\x03svc"
        && lazy_caller.namespace().is_some_and(|own| own.label() == name.label(above - 2))
}

/// Returns the reply's flags: RD and CD are copied, RA is set if forwarding is enabled, all others are cleared.
#[inline(always)]
fn reply_flags(zone: &Zone, header: Header) -> u16 {
    let available = if zone.settings.forwarding { flags::RA } else { 0 };
    flags::QR | header.flags & (flags::OPCODE | flags::RD | flags::CD) | available
}

/// Writes an error reply to a message that is not an answerable query. Only NOTIMP echoes the question, if it can be
/// parsed. Nothing else in such a message is trusted, so the reply has no OPT record.
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
