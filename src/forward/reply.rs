//! Turns an upstream's reply into an [`Entry`]: validated, stripped of hop-by-hop data, and ready to send to any
//! client.
//!
//! Records of every type that answer the question pass through unchanged. Only the framing of each record, the names that
//! may be compressed and the CNAME chain are checked. Records about other names are dropped.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use hickory_net::proto::op::Message;
use hickory_net::proto::rr::{Name as RecordName, Record};

use super::reader::{InvalidReply, ReplyReader, is_within, seconds};
use crate::answer::{Cookie, ForwardRequest};
use crate::wire::{
    HEADER_LEN, Header, Name, OPT_LEN, Reply, Section, extended_error, flags, options, rcode, rtype, u16_at,
};

/// TTL of stale records in seconds (RFC 8767 section 5).
pub(super) const STALE_TTL: u32 = 30;
/// Upper bound of a negative answer's TTL in seconds. RFC 2308 section 5 suggests hours, but a name may be added
/// sooner.
const NEGATIVE_CEILING: u32 = 1800;
/// TTL of an upstream's cached SERVFAIL in seconds (RFC 9520 section 3.2 requires at least one).
const FAILURE_TTL: u32 = 5;
/// Option code of extended DNS errors (RFC 8914 section 2).
const EXTENDED_ERROR: u16 = 15;
/// TSIG and SIG(0) sign the message of one hop (RFC 8945, RFC 2931). No record from there on is passed on.
const SIGNATURES: [u16; 2] = [250, 24];

/// Bounds of the TTLs of cached replies.
#[derive(Clone, Copy, Debug)]
pub struct Ttls {
    /// `--cache-min-ttl` in seconds.
    pub floor: u32,
    /// `--cache-max-ttl` in seconds.
    pub ceiling: u32,
}

/// Offsets of a record's TTL and of its end, relative to the end of the question.
#[derive(Clone, Copy, Debug)]
struct Cut {
    ttl: u16,
    end: u16,
}

/// A cached reply of an upstream.
#[derive(Debug)]
pub struct Entry {
    /// The records after the question, without OPT.
    body: Box<[u8]>,
    cuts: Box<[Cut]>,
    /// Number of records in each section.
    counts: [u16; 3],
    /// Extended response code.
    pub rcode: u16,
    authentic: bool,
    /// Extended errors, as options of an OPT record.
    errors: Box<[u8]>,
    /// Whether the CNAME chain leads into the cluster, where only the zone answers.
    pub leads_in: bool,
    /// Whether it answers with an address that no public name should have.
    pub has_private_address: bool,
    /// Arrival time, in seconds of the forwarder's clock.
    fetched: u32,
    /// Time to cache the entry for, in seconds; 0 means that it is not cached.
    pub ttl: u32,
    /// While the entry is stale: the time before which it is served without querying upstreams again.
    retry_at: AtomicU32,
    hits: AtomicU32,
    refreshing: AtomicBool,
}

/// Freshness of an entry at a given time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Within its TTL; the field is the age in seconds.
    Fresh(u32),
    /// Past its TTL, but served because the upstreams fail or are slow.
    Stale,
    /// Past its TTL: the upstreams have to be queried.
    Expired,
}

impl Freshness {
    /// The freshness with which an entry is served when it has to serve in any case: an expired entry counts as stale.
    pub(super) fn or_stale(self) -> Freshness {
        if self == Freshness::Expired { Freshness::Stale } else { self }
    }
}

/// A query, as far as its reply depends on it.
#[derive(Clone, Copy)]
pub struct ReplyTo<'q> {
    /// The whole message.
    pub query: &'q [u8],
    /// Its parsed parts.
    pub request: &'q ForwardRequest,
    /// The cookie of the reply.
    pub cookie: Option<&'q Cookie>,
}

impl Entry {
    /// Parses an upstream's message. `question` is the question that was sent, in lower case. `ours` reports whether a
    /// name belongs to the cluster.
    ///
    /// # Errors
    /// [`InvalidReply`] if the message cannot be passed on.
    pub fn parse(
        message: &[u8],
        question: &[u8],
        ttls: Ttls,
        now: u32,
        ours: impl Fn(&Name) -> bool,
    ) -> Result<Entry, InvalidReply> {
        let header = Header::parse(message).ok_or(InvalidReply::Mismatched)?;
        let start = HEADER_LEN + question.len();
        let echoed = message.get(HEADER_LEN..start).unwrap_or(&[]);
        let tail = question.len().saturating_sub(4);
        let same = header.questions == 1
            && echoed.eq_ignore_ascii_case(question)
            && echoed.get(tail..) == question.get(tail..);
        if !header.is_reply() || header.opcode() != 0 {
            return Err(InvalidReply::Mismatched);
        }
        // A server without EDNS support may reply with a bare header (RFC 6891 section 7).
        let code = header.flags & 0x0f;
        if matches!(code, rcode::FORMERR | rcode::NOTIMP) && header.additionals == 0 && (same || header.questions == 0)
        {
            return Err(InvalidReply::NoEdns);
        }
        if !same {
            return Err(InvalidReply::Mismatched);
        }
        if header.flags & flags::TC != 0 {
            return Err(InvalidReply::Truncated);
        }
        let qtype = u16_at(question, tail).unwrap_or(0);
        let asks_for_alias = matches!(qtype, rtype::CNAME | rtype::ANY);
        let mut reader = ReplyReader::new(message, start);
        let mut entry = Entry { authentic: header.flags & flags::AD != 0, ..Entry::empty(code, now) };
        // The counts are claims. A record takes at least eleven octets.
        let most = message.len() / 11;
        let mut cuts = Vec::with_capacity(most.min(usize::from(header.answers) + usize::from(header.authorities)));
        let mut seen = Vec::with_capacity(cuts.capacity());
        let mut targets = HashSet::new();
        let mut chain = None;
        let mut end = start;
        let mut passing = true;
        for (section, records) in [header.answers, header.authorities, header.additionals].into_iter().enumerate() {
            if section == 2 {
                // A query for the CNAME itself is answered by it, and the chain is not followed (RFC 1034 section 3.6.2).
                reader.found |= asks_for_alias;
                let found = Chain::new(reader.chain(question)?, &ours, asks_for_alias);
                if seen.iter().any(|record| found.is_foreign(record, qtype, &ours)) {
                    let cleaned = found.cleaned(message, qtype, &ours).ok_or(InvalidReply::Malformed)?;
                    return if cleaned == message {
                        Err(InvalidReply::Malformed)
                    } else {
                        Entry::parse(&cleaned, question, ttls, now, ours)
                    };
                }
                chain = Some(found);
            }
            for _ in 0..records {
                let owner = reader.at;
                let record = reader.record(section).ok_or(InvalidReply::Malformed)?;
                if section < 2 && record.rtype != rtype::OPT {
                    let name = reader.owner_at(owner);
                    targets.extend(reader.target_of(&record));
                    entry.has_private_address |= section == 0 && is_private(record.rtype, record.rdata);
                    seen.push(Seen { section, name, rtype: record.rtype });
                }
                if record.rtype == rtype::OPT {
                    if section != 2 || !record.root {
                        return Err(InvalidReply::Malformed);
                    }
                    entry.rcode |= u16::from(record.ttl[0]) << 4;
                    entry.errors = extended_errors(record.rdata).ok_or(InvalidReply::Malformed)?;
                    passing = false;
                } else if section == 2 && SIGNATURES.contains(&record.rtype) {
                    passing = false;
                } else if passing
                    && section == 2
                    && !chain
                        .as_ref()
                        .is_some_and(|chain| chain.adds(&reader.owner_at(owner), record.rtype, &targets, &ours))
                {
                    // Neither about the question nor about a name in its answer, or a name of the cluster's: only the
                    // zone answers for those, and only to clients that may see them.
                    passing = false;
                } else if passing {
                    // Records after an OPT are dropped: their compression pointers could cross the gap that it leaves.
                    if let Some(count) = entry.counts.get_mut(section) {
                        *count += 1;
                    }
                    cuts.push(Cut { ttl: (record.fixed + 4 - start) as u16, end: (reader.at - start) as u16 });
                    end = reader.at;
                }
            }
        }
        entry.leads_in = chain.is_some_and(|chain| chain.leads_in);
        entry.ttl = ttl_of(&reader, entry.rcode, ttls);
        entry.body = message.get(start..end).unwrap_or(&[]).into();
        entry.cuts = cuts.into();
        let negative = entry.is_negative();
        let mut owner = 0;
        for cut in &entry.cuts {
            let at = usize::from(cut.ttl);
            // An owner that does not point to the question repeats its random case, which is of no use to clients. The
            // octets of a pointer at its end are no letters.
            let letters = entry.body.get_mut(owner..at.saturating_sub(4)).unwrap_or_default();
            let end = match letters.last_chunk::<2>() {
                Some([0xc0..=0xff, _]) => letters.len() - 2,
                _ => letters.len(),
            };
            letters.get_mut(..end).unwrap_or_default().make_ascii_lowercase();
            owner = usize::from(cut.end);
            if let Some(place) = entry.body.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<4>()) {
                let ttl = seconds(u32::from_be_bytes(*place)).min(ttls.ceiling).max(ttls.floor);
                // The TTL of a negative answer's SOA limits how long clients cache that answer (RFC 2308 section 3).
                *place = (if negative && entry.ttl > 0 { ttl.min(entry.ttl) } else { ttl }).to_be_bytes();
            }
        }
        Ok(entry)
    }

    /// Returns a SERVFAIL of our own with extended `errors`, to be cached for `ttl` seconds.
    pub fn failure(errors: &[u8], now: u32, ttl: u32) -> Entry {
        Entry { errors: errors.into(), ttl, ..Entry::empty(rcode::SERVFAIL, now) }
    }

    fn empty(rcode: u16, now: u32) -> Entry {
        Entry {
            body: Box::default(),
            cuts: Box::default(),
            counts: [0; 3],
            rcode,
            authentic: false,
            errors: Box::default(),
            leads_in: false,
            has_private_address: false,
            fetched: now,
            ttl: 0,
            retry_at: AtomicU32::new(0),
            hits: AtomicU32::new(0),
            refreshing: AtomicBool::new(false),
        }
    }

    /// Extended errors, as options of an OPT record.
    pub fn errors(&self) -> &[u8] {
        &self.errors
    }

    /// Sets the extended errors.
    pub fn set_errors(&mut self, errors: &[u8]) {
        self.errors = errors.into();
    }

    /// Returns the freshness at `now`, in seconds of the forwarder's clock.
    #[inline]
    pub fn freshness(&self, now: u32) -> Freshness {
        let age = now.saturating_sub(self.fetched);
        if age < self.ttl {
            Freshness::Fresh(age)
        } else if now < self.retry_at.load(Relaxed) {
            Freshness::Stale
        } else {
            Freshness::Expired
        }
    }

    /// Whether the entry may be served stale: at most `stale` seconds after its TTL has expired (RFC 8767).
    pub fn may_serve_stale(&self, now: u32, stale: u32) -> bool {
        self.is_answer() && now.saturating_sub(self.fetched).saturating_sub(self.ttl) < stale
    }

    /// Serves the entry stale until `then`, but never more than `stale` seconds after its TTL has expired.
    pub fn serve_stale_until(&self, then: u32, stale: u32) {
        let last = self.fetched.saturating_add(self.ttl).saturating_add(stale);
        self.retry_at.store(then.min(last), Relaxed);
    }

    /// Whether the rcode is an answer about the name (NOERROR or NXDOMAIN) and not a failure.
    pub fn is_answer(&self) -> bool {
        matches!(self.rcode, rcode::NOERROR | rcode::NXDOMAIN)
    }

    /// Whether this is NODATA or NXDOMAIN: the answer section is empty.
    pub fn is_negative(&self) -> bool {
        self.counts[0] == 0
    }

    /// Counts a hit and returns whether it should trigger a prefetch: the entry is popular and about to expire. Only
    /// one hit triggers it.
    #[inline]
    pub fn hit(&self, age: u32) -> bool {
        let hits = self.hits.load(Relaxed).saturating_add(1);
        self.hits.store(hits, Relaxed);
        let left = self.ttl - age.min(self.ttl);
        let due = self.ttl >= 10 && left <= (self.ttl / 10).max(2) && hits >= 3;
        due && !self.refreshing.load(Relaxed) && !self.refreshing.swap(true, Relaxed)
    }

    /// Clears the prefetch mark after a failed attempt, so that a later hit may trigger another.
    pub fn clear_refreshing(&self) {
        self.refreshing.store(false, Relaxed);
    }

    /// Size in memory in bytes, including its allocations.
    pub fn size(&self) -> usize {
        size_of::<Entry>() + 16 + self.body.len() + self.cuts.len() * size_of::<Cut>() + self.errors.len()
    }

    /// Writes the reply to a query and returns its length. `payload` is the UDP payload size in the reply's OPT record.
    #[inline]
    pub fn write(
        &self,
        ReplyTo { query, request, cookie }: ReplyTo<'_>,
        freshness: Freshness,
        payload: u16,
        buffer: &mut [u8],
    ) -> Option<usize> {
        let errors: &[u8] = match freshness {
            Freshness::Fresh(_) => &self.errors,
            _ => &extended_error::STALE_ANSWER,
        };
        // Records matter more than extended errors: if both do not fit, the errors are dropped.
        let cookie = cookie.map_or(&[][..], |cookie| &cookie.option);
        let whole = usize::from(request.end) + self.body.len() + OPT_LEN + errors.len() + cookie.len();
        let errors = if whole <= usize::from(request.limit) { errors } else { &[] };
        let reserved = if request.edns.is_some() { OPT_LEN + errors.len() + cookie.len() } else { 0 };
        let wants_authentic = request.flags & flags::AD != 0 || request.edns.is_some_and(|flags| flags & 0x80 != 0);
        let authentic = if self.authentic && wants_authentic { flags::AD } else { 0 };
        let echoed = request.flags & (flags::OPCODE | flags::RD | flags::CD);
        let start = usize::from(request.end);
        let limit = usize::from(request.limit);
        let mut out = Reply::start(buffer, query, start, flags::QR | flags::RA | authentic | echoed, limit, reserved)?;
        let cuts = if out.push(&self.body) {
            out.count(Section::Answer, self.counts[0]);
            out.count(Section::Authority, self.counts[1]);
            out.count(Section::Additional, self.counts[2]);
            &*self.cuts
        } else {
            self.write_what_fits(&mut out)
        };
        for cut in cuts {
            let at = usize::from(cut.ttl);
            let Some(ttl) = self.body.get(at..).and_then(|rest| rest.first_chunk::<4>()) else { continue };
            let left = match freshness {
                // Never 0 once it counts down: clients that refresh at expiry would all do so at once.
                Freshness::Fresh(age) => u32::from_be_bytes(*ttl).saturating_sub(age).max(u32::from(age > 0)),
                _ => STALE_TTL,
            };
            out.patch_ttl(start + at, left);
        }
        let own = request.edns.map(|flags| (payload, flags));
        let both = [errors, cookie];
        let options = if errors.is_empty() && cookie.is_empty() { &[][..] } else { &both[..] };
        Some(out.finish(self.rcode, true, own, options))
    }

    /// Drops records to fit the limit: first the additional section, then an answer's authority section, both without
    /// TC. Only if answer records are cut is TC set (RFC 2181 section 9).
    #[cold]
    fn write_what_fits(&self, out: &mut Reply<'_>) -> &[Cut] {
        let answers = usize::from(self.counts[0]);
        let with_authority = answers + usize::from(self.counts[1]);
        let end_of = |records: usize| match records.checked_sub(1) {
            None => 0,
            Some(last) => self.cuts.get(last).map_or(0, |cut| usize::from(cut.end)),
        };
        let mut push = |records: usize| self.body.get(..end_of(records)).is_some_and(|part| out.push(part));
        let fitting = if push(with_authority) {
            with_authority
        } else {
            (0..=answers).rev().find(|records| push(*records)).unwrap_or(0)
        };
        out.count(Section::Answer, fitting.min(answers) as u16);
        out.count(Section::Authority, fitting.saturating_sub(answers) as u16);
        if fitting < answers || answers == 0 && fitting < with_authority {
            out.set_flags(flags::TC);
        }
        self.cuts.get(..fitting).unwrap_or(&[])
    }

    /// Returns the whole message with `question`, for parsers. TTLs are as received, within the configured bounds.
    pub fn message(&self, question: &[u8]) -> Vec<u8> {
        let mut message = vec![0; HEADER_LEN];
        let head = flags::QR | flags::RD | flags::RA | self.rcode & 0x0f;
        message[2..4].copy_from_slice(&head.to_be_bytes());
        message[5] = 1;
        for (place, count) in message[6..].chunks_exact_mut(2).zip(self.counts) {
            place.copy_from_slice(&count.to_be_bytes());
        }
        message.extend_from_slice(question);
        message.extend_from_slice(&self.body);
        message
    }
}

/// A record of the answer or authority section.
struct Seen {
    section: usize,
    /// Its owner; `None` if that is the name of the question.
    name: Option<Vec<u8>>,
    rtype: u16,
}

/// The names that a reply may speak about: the question's, and the targets of its CNAME chain as far as the cluster.
struct Chain {
    names: Vec<Vec<u8>>,
    leads_in: bool,
}

/// Types that prove or sign other records (RFC 4034, RFC 5155).
const PROOFS: [u16; 4] = [43, rtype::RRSIG, 47, 50];

impl Chain {
    /// `names` starts with the question's name.
    fn new(mut names: Vec<Vec<u8>>, ours: &impl Fn(&Name) -> bool, asks_for_alias: bool) -> Chain {
        let first = names.iter().skip(1).position(|name| is_ours(name, ours)).filter(|_| !asks_for_alias);
        if let Some(first) = first {
            names.truncate(first + 2);
        }
        Chain { names, leads_in: first.is_some() }
    }

    fn has(&self, name: &Option<Vec<u8>>) -> bool {
        name.as_ref().is_none_or(|name| self.names.contains(name))
    }

    /// Whether a record neither answers the question, nor continues its chain, nor says whose zone it is: it may be an
    /// attempt to plant something.
    fn is_foreign(&self, record: &Seen, qtype: u16, ours: &impl Fn(&Name) -> bool) -> bool {
        let owner = record.name.as_ref().or(self.names.first());
        let Some(owner) = owner.filter(|owner| !is_ours(owner, ours)) else { return true };
        let encloses = || self.names.iter().any(|name| is_within(name, owner));
        match (record.section, record.rtype) {
            (0, rtype::DNAME) => !encloses(),
            (0, rtype::RRSIG) => !self.has(&record.name) && !encloses(),
            (0, rtype) if rtype == qtype || rtype == rtype::CNAME || qtype == rtype::ANY => !self.has(&record.name),
            (1, rtype::SOA | rtype::NS) => !encloses(),
            (1, rtype) => !PROOFS.contains(&rtype),
            _ => true,
        }
    }

    /// Whether a record of the additional section is about a name of the chain or a target of an answer.
    fn adds(
        &self,
        owner: &Option<Vec<u8>>,
        rtype: u16,
        targets: &HashSet<Vec<u8>>,
        ours: &impl Fn(&Name) -> bool,
    ) -> bool {
        let is_target = || owner.as_ref().is_some_and(|owner| targets.contains(owner));
        let is_address = matches!(rtype, rtype::A | rtype::AAAA | rtype::RRSIG);
        let is_foreign = owner.as_ref().is_some_and(|owner| is_ours(owner, ours));
        !is_foreign && (self.has(owner) || is_address && is_target())
    }

    /// Returns the message without its foreign records; `None` if it cannot be parsed. This is rare, so it may cost.
    fn cleaned(&self, message: &[u8], qtype: u16, ours: &impl Fn(&Name) -> bool) -> Option<Vec<u8>> {
        let mut message = Message::from_vec(message).ok()?;
        let keeps = |section: usize, record: &Record| {
            let name = wire_name(&record.name);
            name.is_some() && !self.is_foreign(&Seen { section, name, rtype: record.record_type().into() }, qtype, ours)
        };
        message.answers.retain(|record| keeps(0, record));
        message.authorities.retain(|record| keeps(1, record));
        message.to_vec().ok()
    }
}

fn is_ours(name: &[u8], ours: &impl Fn(&Name) -> bool) -> bool {
    Name::parse(name, 0).is_ok_and(|name| ours(&name))
}

/// Encodes a name in wire format and lower case; `None` if a label is too long.
pub(super) fn wire_name(name: &RecordName) -> Option<Vec<u8>> {
    let mut wire = Vec::with_capacity(64);
    for label in name.iter() {
        wire.push(u8::try_from(label.len()).ok()?);
        wire.extend(label.iter().map(u8::to_ascii_lowercase));
    }
    wire.push(0);
    Some(wire)
}

/// Whether the rdata of an A or AAAA record is an address that no public name should have: private (RFC 1918, RFC 4193),
/// shared (RFC 6598), loopback, link-local or unspecified.
fn is_private(rtype: u16, rdata: &[u8]) -> bool {
    let address = match rtype {
        rtype::A => rdata.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        rtype::AAAA => rdata.first_chunk::<16>().map(|octets| IpAddr::from(*octets).to_canonical()),
        _ => None,
    };
    match address {
        Some(IpAddr::V4(v4)) => {
            let [first, second, ..] = v4.octets();
            let is_shared = first == 100 && second & 0xc0 == 64;
            v4.is_private() || v4.is_loopback() || v4.is_link_local() || first == 0 || is_shared
        }
        Some(IpAddr::V6(v6)) => {
            v6.is_unique_local() || v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified()
        }
        None => false,
    }
}

/// Returns the extended errors among the options of an OPT record; `None` if an option is cut short.
fn extended_errors(rdata: &[u8]) -> Option<Box<[u8]>> {
    let mut errors = Vec::new();
    for option in options(rdata) {
        let (code, option) = option?;
        // Longer texts belong in a log, not in a datagram.
        if code == EXTENDED_ERROR && (6..=256).contains(&option.len()) && errors.len() < 512 {
            errors.extend_from_slice(option);
        }
    }
    Some(errors.into())
}

/// Time to cache a reply for, in seconds; 0 means that it is not cached.
fn ttl_of(reader: &ReplyReader<'_>, rcode: u16, ttls: Ttls) -> u32 {
    let ttl = match (rcode, reader.negative) {
        (rcode::NOERROR, _) if reader.found => reader.floor_of_answers,
        // A negative answer, perhaps at the end of a CNAME chain, is valid as long as both the SOA and the chain are.
        // Without a SOA it is not cached (RFC 2308 section 5).
        (rcode::NOERROR | rcode::NXDOMAIN, Some(negative)) => {
            negative.min(NEGATIVE_CEILING).min(reader.floor_of_answers)
        }
        (rcode::SERVFAIL, _) => return FAILURE_TTL,
        _ => return 0,
    };
    ttl.min(ttls.ceiling).max(ttls.floor)
}
