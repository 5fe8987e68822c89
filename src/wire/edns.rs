//! EDNS(0): the OPT pseudo record of a query (RFC 6891).

use super::query::Malformed;
use super::{HEADER_LEN, Header, rtype, u16_at};

/// What a client says about itself in its OPT record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// The largest datagram that the client can take, in octets, as asked.
    pub payload: u16,
    /// EDNS version; only 0 is known.
    pub version: u8,
    /// The flags' upper eight bits.
    flags: u8,
}

const OPT: u8 = rtype::OPT as u8;
/// DO (RFC 3225).
const DNSSEC_OK: u8 = 0x80;

impl Edns {
    /// The flags of the reply's OPT record: whether the client wants DNSSEC records comes back as it was.
    #[inline(always)]
    pub fn reply_flags(&self) -> u8 {
        self.flags & DNSSEC_OK
    }

    /// Reads what follows the question, which ends at `at`: in nearly every query nothing, or one OPT without options.
    #[inline(always)]
    pub(super) fn parse(message: &[u8], header: Header, at: usize) -> Result<Option<Edns>, Malformed> {
        if header.answers | header.authorities == 0 {
            if header.additionals == 0 {
                return Ok(None);
            }
            let record = message.get(at..).and_then(|rest| rest.first_chunk::<11>());
            if let (1, Some(&[0, 0, OPT, size_high, size_low, _, version, flags, _, 0, 0])) =
                (header.additionals, record)
            {
                let payload = u16::from_be_bytes([size_high, size_low]);
                return Ok(Some(Edns { payload, version, flags }));
            }
        }
        Edns::find(message, header, at)
    }

    /// Walks the records that follow the question for the one OPT that a query may have.
    #[inline(never)]
    fn find(message: &[u8], header: Header, mut at: usize) -> Result<Option<Edns>, Malformed> {
        for _ in 0..u32::from(header.answers) + u32::from(header.authorities) {
            at = Record::parse(message, at).ok_or(Malformed::Records)?.end;
        }
        let mut found = None;
        for _ in 0..header.additionals {
            let record = Record::parse(message, at).ok_or(Malformed::Records)?;
            at = record.end;
            if record.rtype != rtype::OPT {
                continue;
            }
            if found.is_some() {
                return Err(Malformed::TwoOpts);
            }
            if !record.root || !options(record.rdata).all(|option| option.is_some()) {
                return Err(Malformed::Records);
            }
            let [_, version, flags, _] = record.ttl;
            found = Some(Edns { payload: record.class, version, flags });
        }
        Ok(found)
    }
}

/// The options of an OPT record, each its code and all its octets, code and length among them (RFC 6891 section 6.1.2);
/// `None` at the end if the last does not end.
pub(crate) fn options(mut rdata: &[u8]) -> impl Iterator<Item = Option<(u16, &[u8])>> {
    std::iter::from_fn(move || {
        if rdata.is_empty() {
            return None;
        }
        let first = || rdata.split_at_checked(4 + usize::from(u16_at(rdata, 2)?));
        let (option, rest) = first().unwrap_or_default();
        rdata = rest;
        Some(u16_at(option, 0).map(|code| (code, option)))
    })
}

/// Whether the OPT record of a query has this option. What is malformed has none.
pub fn has_option(message: &[u8], code: u16) -> bool {
    let mut found = false;
    let whole = each_record(message, |_, record| {
        found |= record.rtype == rtype::OPT && options(record.rdata).flatten().any(|(this, _)| this == code);
    });
    found && whole.is_some()
}

/// Seconds for which a reply may be kept by somebody who knows nothing of DNS (RFC 8484 section 5.1): the smallest TTL of
/// its answer, and what the SOA of a negative one says; `None` if nothing in it says how long.
pub fn freshness(reply: &[u8]) -> Option<u32> {
    let mut smallest = None::<u32>;
    each_record(reply, |section, record| {
        let ttl = u32::from_be_bytes(record.ttl);
        let seconds = match (section, record.rtype, record.rdata.last_chunk()) {
            (Part::Answer, ..) => ttl,
            (Part::Authority, rtype::SOA, Some(minimum)) => ttl.min(u32::from_be_bytes(*minimum)),
            _ => return,
        };
        smallest = Some(smallest.map_or(seconds, |smallest| smallest.min(seconds)));
    })?;
    smallest
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Answer,
    Authority,
    Additional,
}

/// Shows all records of a message; `None` if it is malformed, in which case those before have been shown.
fn each_record<'m>(message: &'m [u8], mut show: impl FnMut(Part, &Record<'m>)) -> Option<()> {
    let header = Header::parse(message)?;
    let mut at = HEADER_LEN;
    for _ in 0..header.questions {
        at = skip_name(message, at)? + 4;
    }
    let parts =
        [(Part::Answer, header.answers), (Part::Authority, header.authorities), (Part::Additional, header.additionals)];
    for (part, count) in parts {
        for _ in 0..count {
            let record = Record::parse(message, at)?;
            at = record.end;
            show(part, &record);
        }
    }
    Some(())
}

/// One resource record, of which only the frame is looked at.
pub(crate) struct Record<'m> {
    /// Whether its owner is the root.
    pub(crate) root: bool,
    /// Where its type is: behind the owner.
    pub(crate) fixed: usize,
    pub(crate) rtype: u16,
    class: u16,
    pub(crate) ttl: [u8; 4],
    pub(crate) rdata: &'m [u8],
    pub(crate) end: usize,
}

/// Octets of type, class, TTL and length.
pub(crate) const FIXED: usize = 10;

impl<'m> Record<'m> {
    #[inline]
    pub(crate) fn parse(message: &'m [u8], at: usize) -> Option<Record<'m>> {
        let fixed = skip_name(message, at)?;
        let rtype = u16_at(message, fixed)?;
        let class = u16_at(message, fixed + 2)?;
        let ttl = *message.get(fixed + 4..)?.first_chunk()?;
        let start = fixed + FIXED;
        let end = start + usize::from(u16_at(message, fixed + 8)?);
        Some(Record { root: fixed == at + 1, fixed, rtype, class, ttl, rdata: message.get(start..end)?, end })
    }
}

/// The offset just past the name at `at`: past its root or past its first pointer.
#[inline]
pub(crate) fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0..=0xff => return Some(at + 2),
            _ => return None,
        }
    }
}
