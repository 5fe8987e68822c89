//! What an upstream sends becomes an [`Entry`]: checked, without what speaks of one hop only, ready to be sent to many.
//!
//! Records pass through as they are, whatever their type. What is looked at is the frame of each record, the names that
//! may be compressed, and whether the aliases of the answer go round in a circle.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use thiserror::Error;

use super::reader::{ReplyReader, seconds};
use crate::answer::ForwardRequest;
use crate::wire::{
    HEADER_LEN, Header, Name, OPT_LEN, Reply, Section, extended_error, flags, options, rcode, rtype, u16_at,
};

/// TTL of records that are past their time, in seconds (RFC 8767 section 5).
pub(super) const STALE_TTL: u32 = 30;
/// No negative answer is kept longer, in seconds: what was missing may come to be (RFC 2308 section 5 advises hours).
const NEGATIVE_CEILING: u32 = 1800;
/// How long an upstream's SERVFAIL is kept, in seconds (RFC 9520 section 3.2 demands at least one).
const FAILURE_TTL: u32 = 5;
/// The option of extended errors (RFC 8914 section 2).
const EXTENDED_ERROR: u16 = 15;
/// TSIG and SIG(0) sign one hop's message (RFC 8945, RFC 2931); they end what is passed on.
const SIGNATURES: [u16; 2] = [250, 24];

/// Why a message is no reply to pass on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidReply {
    /// Another question, or no reply at all: perhaps forged. The right one may still come.
    #[error("it answers another question")]
    Foreign,
    /// TC: there is more over TCP.
    #[error("it is cut off")]
    Truncated,
    /// A record that does not end, a name that points nowhere, an address of a wrong length.
    #[error("it is damaged")]
    Damaged,
    /// Aliases that lead back to themselves.
    #[error("its aliases go round in a circle")]
    Circle,
    /// FORMERR or NOTIMP from a server that does not know EDNS (RFC 6891 section 7).
    #[error("the server does not know EDNS")]
    NoEdns,
}

/// Bounds of how long answers are kept.
#[derive(Clone, Copy, Debug)]
pub struct Ttls {
    /// `--cache-min-ttl` in seconds.
    pub floor: u32,
    /// `--cache-max-ttl` in seconds.
    pub ceiling: u32,
}

/// Where a record's TTL is and where the record ends, in octets after the question.
#[derive(Clone, Copy, Debug)]
struct Cut {
    ttl: u16,
    end: u16,
}

/// An upstream's reply: answered to everyone who asks the same.
#[derive(Debug)]
pub struct Entry {
    /// Everything after the question, without OPT.
    body: Box<[u8]>,
    cuts: Box<[Cut]>,
    /// Records of each section.
    counts: [u16; 3],
    /// Extended response code.
    pub rcode: u16,
    authentic: bool,
    /// Extended errors, as options of an OPT record.
    errors: Box<[u8]>,
    /// Whether an alias leads to a name of the cluster, which only the table answers.
    pub leads_in: bool,
    /// When it came, in seconds of the forwarder's clock.
    fetched: u32,
    /// Seconds that it may be kept for; 0: not at all.
    pub ttl: u32,
    /// While it is stale: until when nobody need try again for something fresher.
    retry_at: AtomicU32,
    hits: AtomicU32,
    refreshing: AtomicBool,
}

/// What an entry is worth at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// To be answered, `0` seconds after it came.
    Fresh(u32),
    /// Past its time, and nothing fresher can be had now.
    Stale,
    /// Past its time: to be asked for again.
    Expired,
}

impl Entry {
    /// Reads a message of an upstream. `question` is the question that was sent, in lower case; `ours` says which names
    /// are the cluster's.
    ///
    /// # Errors
    /// [`InvalidReply`]: the message is not passed on.
    pub fn parse(
        message: &[u8],
        question: &[u8],
        ttls: Ttls,
        now: u32,
        ours: impl Fn(&Name) -> bool,
    ) -> Result<Entry, InvalidReply> {
        let header = Header::parse(message).ok_or(InvalidReply::Foreign)?;
        let start = HEADER_LEN + question.len();
        let echoed = message.get(HEADER_LEN..start).unwrap_or(&[]);
        let tail = question.len().saturating_sub(4);
        let same = header.questions == 1
            && echoed.eq_ignore_ascii_case(question)
            && echoed.get(tail..) == question.get(tail..);
        if !header.is_reply() || header.opcode() != 0 {
            return Err(InvalidReply::Foreign);
        }
        // Who does not know EDNS may send back a header and nothing else (RFC 6891 section 7).
        let code = header.flags & 0x0f;
        if matches!(code, rcode::FORMERR | rcode::NOTIMP) && header.additionals == 0 && (same || header.questions == 0)
        {
            return Err(InvalidReply::NoEdns);
        }
        if !same {
            return Err(InvalidReply::Foreign);
        }
        if header.flags & flags::TC != 0 {
            return Err(InvalidReply::Truncated);
        }
        let qtype = u16_at(question, tail).unwrap_or(0);
        let mut reader = ReplyReader::new(message, start);
        let mut entry = Entry { authentic: header.flags & flags::AD != 0, ..Entry::empty(code, now) };
        let mut cuts = Vec::with_capacity(usize::from(header.answers) + usize::from(header.authorities));
        let mut end = start;
        let mut passing = true;
        for (section, records) in [header.answers, header.authorities, header.additionals].into_iter().enumerate() {
            for _ in 0..records {
                let owner = reader.at;
                let record = reader.record(section).ok_or(InvalidReply::Damaged)?;
                if record.rtype == rtype::OPT {
                    if section != 2 || !record.root {
                        return Err(InvalidReply::Damaged);
                    }
                    entry.rcode |= u16::from(record.ttl[0]) << 4;
                    entry.errors = extended_errors(record.rdata).ok_or(InvalidReply::Damaged)?;
                    passing = false;
                } else if section == 2 && SIGNATURES.contains(&record.rtype) {
                    passing = false;
                } else if section == 2 && reader.owner_is(owner, &ours) {
                    // What the cluster's names are is said by the table, to whom it may be said.
                    passing = false;
                } else if passing {
                    // What follows an OPT is left out: names in it could point across the gap.
                    if let Some(count) = entry.counts.get_mut(section) {
                        *count += 1;
                    }
                    cuts.push(Cut { ttl: (record.fixed + 4 - start) as u16, end: (reader.at - start) as u16 });
                    end = reader.at;
                }
            }
        }
        // Who asks for the alias itself has it: nothing is followed (RFC 1034 section 3.6.2).
        let asks_for_alias = matches!(qtype, rtype::CNAME | rtype::ANY);
        reader.found |= asks_for_alias;
        let chain = reader.chain(question)?;
        let is_ours = |name: &Vec<u8>| Name::parse(name, 0).is_ok_and(|name| ours(&name));
        entry.leads_in = !asks_for_alias && chain.iter().any(is_ours);
        entry.ttl = ttl_of(&reader, entry.rcode, ttls);
        entry.body = message.get(start..end).unwrap_or(&[]).into();
        entry.cuts = cuts.into();
        let negative = entry.is_negative();
        for cut in &entry.cuts {
            let at = usize::from(cut.ttl);
            if let Some(place) = entry.body.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<4>()) {
                let ttl = seconds(u32::from_be_bytes(*place)).min(ttls.ceiling).max(ttls.floor);
                // The SOA of a negative answer lives as long as the answer (RFC 2308 section 3).
                *place = (if negative && entry.ttl > 0 { ttl.min(entry.ttl) } else { ttl }).to_be_bytes();
            }
        }
        Ok(entry)
    }

    /// A SERVFAIL of our own, kept for `ttl` seconds, which says why by `errors`.
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

    /// Says why, or how, by extended errors.
    pub fn tell(&mut self, errors: &[u8]) {
        self.errors = errors.into();
    }

    /// What it is worth now, in seconds of the forwarder's clock.
    #[inline]
    pub fn age(&self, now: u32) -> Freshness {
        let age = now.saturating_sub(self.fetched);
        if age < self.ttl {
            Freshness::Fresh(age)
        } else if now < self.retry_at.load(Relaxed) {
            Freshness::Stale
        } else {
            Freshness::Expired
        }
    }

    /// Whether it may stand in for a fresher one that cannot be had, `stale` seconds past its time at most (RFC 8767).
    pub fn may_stand_in(&self, now: u32, stale: u32) -> bool {
        self.is_answer() && now.saturating_sub(self.fetched).saturating_sub(self.ttl) < stale
    }

    /// Nobody need try for something fresher until then, nor longer than `stale` seconds past its time.
    pub fn stand_in_until(&self, then: u32, stale: u32) {
        let last = self.fetched.saturating_add(self.ttl).saturating_add(stale);
        self.retry_at.store(then.min(last), Relaxed);
    }

    /// Whether it says something about the name, rather than that nothing can be said.
    pub fn is_answer(&self) -> bool {
        matches!(self.rcode, rcode::NOERROR | rcode::NXDOMAIN)
    }

    /// Whether the name exists and has no such record, or does not exist.
    pub fn is_negative(&self) -> bool {
        self.counts[0] == 0
    }

    /// Counts a hit; says whether this is the one that should have it asked for again, before it expires: when it is
    /// asked for often and has little time left.
    #[inline]
    pub fn hit(&self, age: u32) -> bool {
        let hits = self.hits.load(Relaxed).saturating_add(1);
        self.hits.store(hits, Relaxed);
        let left = self.ttl - age.min(self.ttl);
        let due = self.ttl >= 10 && left <= (self.ttl / 10).max(2) && hits >= 3;
        due && !self.refreshing.load(Relaxed) && !self.refreshing.swap(true, Relaxed)
    }

    /// It could not be asked for again; somebody else may try.
    pub fn refreshed(&self) {
        self.refreshing.store(false, Relaxed);
    }

    /// Octets that it takes in memory, those of its own allocations included.
    pub fn size(&self) -> usize {
        size_of::<Entry>() + 16 + self.body.len() + self.cuts.len() * size_of::<Cut>() + self.errors.len()
    }

    /// Writes it as the reply to a query; returns its length. `payload` is what the reply's OPT record says.
    #[inline]
    pub fn write(
        &self,
        query: &[u8],
        ask: &ForwardRequest,
        age: Freshness,
        payload: u16,
        buffer: &mut [u8],
    ) -> Option<usize> {
        let errors: &[u8] = match age {
            Freshness::Fresh(_) => &self.errors,
            _ => &extended_error::STALE_ANSWER,
        };
        // What was asked for comes before words about it: without room for both the errors are left out.
        let whole = usize::from(ask.end) + self.body.len() + OPT_LEN + errors.len();
        let errors = if whole <= usize::from(ask.limit) { errors } else { &[] };
        let reserved = if ask.edns.is_some() { OPT_LEN + errors.len() } else { 0 };
        let wants_authentic = ask.flags & flags::AD != 0 || ask.edns.is_some_and(|flags| flags & 0x80 != 0);
        let authentic = if self.authentic && wants_authentic { flags::AD } else { 0 };
        let kept = ask.flags & (flags::OPCODE | flags::RD | flags::CD);
        let start = usize::from(ask.end);
        let limit = usize::from(ask.limit);
        let mut out = Reply::start(buffer, query, start, flags::QR | flags::RA | authentic | kept, limit, reserved)?;
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
            let left = match age {
                Freshness::Fresh(age) => u32::from_be_bytes(*ttl).saturating_sub(age),
                _ => STALE_TTL,
            };
            out.patch_ttl(start + at, left);
        }
        let own = ask.edns.map(|flags| (payload, flags));
        Some(out.finish(self.rcode, true, own, errors))
    }

    /// Additional records are left out first and silently, then the authority of an answer, and only then what was asked
    /// for, with TC (RFC 2181 section 9).
    #[cold]
    fn write_what_fits(&self, out: &mut Reply<'_>) -> &[Cut] {
        let answers = usize::from(self.counts[0]);
        let with_authority = answers + usize::from(self.counts[1]);
        let end_of = |records: usize| match records.checked_sub(1) {
            None => 0,
            Some(last) => self.cuts.get(last).map_or(0, |cut| usize::from(cut.end)),
        };
        let mut push = |records: usize| self.body.get(..end_of(records)).is_some_and(|part| out.push(part));
        let kept = if push(with_authority) {
            with_authority
        } else {
            (0..=answers).rev().find(|records| push(*records)).unwrap_or(0)
        };
        out.count(Section::Answer, kept.min(answers) as u16);
        out.count(Section::Authority, kept.saturating_sub(answers) as u16);
        if kept < answers || answers == 0 && kept < with_authority {
            out.set_flags(flags::TC);
        }
        self.cuts.get(..kept).unwrap_or(&[])
    }

    /// The whole message as it would answer its own question, for parsers. TTLs are those it came with.
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

/// The extended errors among the options of an OPT record; `None` if an option does not end.
fn extended_errors(rdata: &[u8]) -> Option<Box<[u8]>> {
    let mut errors = Vec::new();
    for option in options(rdata) {
        let (code, option) = option?;
        // A text as long as that is for people with logs, not for a datagram.
        if code == EXTENDED_ERROR && (6..=256).contains(&option.len()) && errors.len() < 512 {
            errors.extend_from_slice(option);
        }
    }
    Some(errors.into())
}

/// How long an answer may be kept.
fn ttl_of(reader: &ReplyReader<'_>, rcode: u16, ttls: Ttls) -> u32 {
    let ttl = match (rcode, reader.negative) {
        (rcode::NOERROR, _) if reader.found => reader.floor_of_answers,
        // Nothing, or aliases that lead to nothing: both have to hold. RFC 2308 section 5: not without a SOA.
        (rcode::NOERROR | rcode::NXDOMAIN, Some(negative)) => {
            negative.min(NEGATIVE_CEILING).min(reader.floor_of_answers)
        }
        (rcode::SERVFAIL, _) => return FAILURE_TTL,
        _ => return 0,
    };
    ttl.min(ttls.ceiling).max(ttls.floor)
}
