//! Turns the octets of a query into the octets of a reply: the complete hot path.

mod ahead;
mod cookie;
mod records;

use crate::resolve::{NoTrace, Node, Outcome, Space, resolve};
use crate::wire::{
    CLASS_IN, Edns, HEADER_LEN, Header, Name, OPT_LEN, Query, Question, Reply, Section, extended_error, flags, rcode,
    rtype,
};
use crate::zone::{Caller, LazyCaller, Zone};
use records::Writer;

pub use ahead::first_lookup;
pub use cookie::{COOKIE_LEN, Cookie};

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

/// A parsed query that the zone does not answer completely. Its name and cookie are in the [`Scratch`].
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
    /// The cookie for the reply to the latest query, if that had one.
    cookie: Option<Cookie>,
}

impl Scratch {
    /// Creates the state with an initial rotation of `turn`.
    pub fn new(turn: u16) -> Scratch {
        Scratch { name: Name::empty(), turn, may_forward: true, cookie: None }
    }

    /// Creates state for answers from the zone only: names outside the cluster are refused, and a CNAME chain ends
    /// where it leaves the cluster.
    pub fn zone_only(turn: u16) -> Scratch {
        Scratch { may_forward: false, ..Scratch::new(turn) }
    }

    /// Whether the client of the latest query has shown by a cookie that its address is not forged.
    pub fn is_proven(&self) -> bool {
        self.cookie.is_some_and(|cookie| cookie.is_valid)
    }

    /// The cookie for the reply to the latest query, if that had one.
    pub fn cookie(&self) -> Option<&Cookie> {
        self.cookie.as_ref()
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
    scratch.cookie = None;
    if header.flags & (flags::QR | flags::OPCODE) != 0 {
        return match header.is_reply() {
            true => Verdict::Drop,
            false => refuse(zone, caller, query, header, rcode::NOTIMP, reply),
        };
    }
    let Scratch { name, turn, may_forward, cookie } = scratch;
    *turn = turn.wrapping_add(1);
    let Ok(Query { question, edns }) = Query::parse(query, header, name) else {
        return refuse(zone, caller, query, header, rcode::FORMERR, reply);
    };
    let settings = &*zone.settings;
    let limit = match (limit, edns) {
        (Limit::Stream, _) => usize::from(u16::MAX),
        (Limit::Datagram, None) => 512,
        (Limit::Datagram, Some(edns)) => usize::from(edns.payload.max(512).min(settings.udp_payload)),
    };
    let mut reserved = if edns.is_some() { OPT_LEN } else { 0 };
    if let Some(sent) = edns.and_then(|edns| edns.cookie(query)) {
        *cookie = cookie::reply(&settings.cookie_secret, caller.address(), sent);
        reserved += COOKIE_LEN;
    }
    let flags = reply_flags(zone, header);
    let Some(mut out) = Reply::start(reply, query, question.end, flags, limit, reserved) else { return Verdict::Drop };
    let qtype = question.qtype;
    let forward = |reason| {
        let (end, limit) = (question.end as u16, limit as u16);
        let edns = edns.map(|edns| edns.reply_flags());
        Verdict::Forward(ForwardRequest { end, qtype, limit, flags: header.flags, edns, reason })
    };
    let mut options: &[&[u8]] = &[];
    let (rcode, zone_class) = if edns.is_some_and(|edns| edns.version > 0) {
        (rcode::BADVERS, ZoneClass::Other)
    } else if question.qclass != CLASS_IN || !zone.allows(caller) {
        (rcode::REFUSED, ZoneClass::Other)
    } else if let Some(rcode) = Some(qtype).filter(|&qtype| may_be_meta(qtype)).and_then(rcode_of_meta_type) {
        (rcode, ZoneClass::Other)
    } else {
        let lazy_caller = LazyCaller::new(zone, caller);
        match resolve(&lazy_caller, name, NoTrace) {
            // Nearly every answer is one record of a Service.
            Outcome::Found(Node::Service(service), space) if service.push_lone(qtype, settings.ttl, &mut out) => {
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
                options = &[&extended_error::NOT_READY];
                (rcode::SERVFAIL, ZoneClass::Other)
            }
            Outcome::NotOurs if *may_forward && settings.is_forwarded(name) => return forward(ForwardReason::Outside),
            // The root exists, whatever other names do.
            Outcome::NotOurs if settings.others_are_missing && name.labels() > 0 => (rcode::NXDOMAIN, ZoneClass::Other),
            Outcome::NotOurs => (rcode::REFUSED, ZoneClass::Other),
        }
    };
    let own = edns.map(|edns| (settings.udp_payload, edns.reply_flags()));
    let with_cookie;
    if let Some(cookie) = cookie {
        with_cookie = [options.first().copied().unwrap_or_default(), &cookie.option];
        options = &with_cookie;
    }
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

/// Whether a type is not one of the first forty, which are all types of records and nearly all that is asked for.
#[inline(always)]
fn may_be_meta(qtype: u16) -> bool {
    qtype.wrapping_sub(1) >= 40
}

/// Returns the rcode for a type that no record can have (RFC 6895 section 3.1); `None` for all others, and for ANY.
#[inline(never)]
fn rcode_of_meta_type(qtype: u16) -> Option<u16> {
    match qtype {
        // They belong into the additional section (RFC 6891, RFC 8945), or are reserved.
        0 | rtype::OPT | 250 => Some(rcode::FORMERR),
        rtype::AXFR | rtype::IXFR => Some(rcode::REFUSED),
        128..=254 => Some(rcode::NOTIMP),
        _ => None,
    }
}

/// Writes an error reply to a message that is not an answerable query. Only NOTIMP echoes the question, if it can be
/// parsed. An OPT record is answered if it can be read (RFC 6891 section 7); one with a cookie and no question is a
/// request for a cookie alone (RFC 7873 section 5.4).
#[cold]
fn refuse(zone: &Zone, caller: Caller<'_>, query: &[u8], header: Header, mut rcode: u16, reply: &mut [u8]) -> Verdict {
    let end = match Question::parse(query, header, &mut Name::empty()) {
        Ok(question) if rcode == rcode::NOTIMP => question.end,
        _ => HEADER_LEN,
    };
    let settings = &*zone.settings;
    let edns = Edns::salvage(query, header);
    let sent = edns.and_then(|edns| edns.cookie(query)).filter(|_| zone.allows(caller));
    let cookie = sent.and_then(|sent| cookie::reply(&settings.cookie_secret, caller.address(), sent));
    if rcode == rcode::FORMERR && header.questions == 0 && cookie.is_some() {
        rcode = rcode::NOERROR;
    }
    let own = edns.map(|edns| (settings.udp_payload, edns.reply_flags()));
    let option = cookie.as_ref().map_or(&[][..], |cookie| &cookie.option);
    match Reply::start(reply, query, end, reply_flags(zone, header), 512, OPT_LEN + COOKIE_LEN) {
        Some(mut out) => {
            let len = out.finish(rcode, end > HEADER_LEN, own, &[option]);
            Verdict::Reply { len, rcode, qtype: 0, zone_class: ZoneClass::Other }
        }
        None => Verdict::Drop,
    }
}

/// Writes the reply that asks a client to repeat its query over TCP: the question alone, with TC set. It is no longer
/// than the query. Returns its length; `None` if the query cannot be parsed.
pub fn truncated(query: &[u8], reply: &mut [u8]) -> Option<usize> {
    let header = Header::parse(query)?;
    let question = Question::parse(query, header, &mut Name::empty()).ok()?;
    let flags = flags::QR | flags::TC | header.flags & (flags::OPCODE | flags::RD | flags::CD);
    let mut out = Reply::start(reply, query, question.end, flags, 512, 0)?;
    Some(out.finish(rcode::NOERROR, true, None, &[]))
}
