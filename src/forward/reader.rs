//! Reads the records of an upstream's reply: their framing, the names that may be compressed, and the CNAME chain. The
//! rdata of all other types is opaque.

use thiserror::Error;

use crate::wire::{FIXED_LEN, HEADER_LEN, MAX_NAME, Record, rtype, skip_name, u16_at};

/// Maximum length of a CNAME chain.
const CHAIN: usize = 16;

/// A TTL in seconds. One with the most significant bit set counts as zero (RFC 2181 section 8).
pub(super) fn seconds(ttl: u32) -> u32 {
    if ttl > i32::MAX as u32 { 0 } else { ttl }
}

/// Reason why a message is not passed on as a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvalidReply {
    /// Not a reply, or a reply to another question, and perhaps forged. The right one may still arrive.
    #[error("the reply does not match the question")]
    Mismatched,
    /// TC is set: the whole reply is available over TCP.
    #[error("the reply is truncated")]
    Truncated,
    /// Malformed, for example a record that is cut short, a bad compression pointer, or an address of the wrong length.
    #[error("the reply is malformed")]
    Malformed,
    /// A CNAME chain that loops or is too long.
    #[error("the CNAME chain of the reply loops or is too long")]
    CnameLoop,
    /// FORMERR or NOTIMP from a server that does not support EDNS (RFC 6891 section 7).
    #[error("the server does not support EDNS")]
    NoEdns,
}

/// Whether `name` is `ancestor` or below it. Both are in wire format and lower case.
pub(super) fn is_within(name: &[u8], ancestor: &[u8]) -> bool {
    let mut at = 0;
    loop {
        match name.get(at..) {
            Some(rest) if rest == ancestor => return true,
            Some([length, ..]) if *length > 0 => at += 1 + usize::from(*length),
            _ => return false,
        }
    }
}

/// Reader of an upstream's reply, record by record.
pub(super) struct ReplyReader<'m> {
    message: &'m [u8],
    pub(super) at: usize,
    /// Offsets of each record's fixed part: type, class, TTL and length. No name may overlap it: the TTL is rewritten
    /// as it counts down, which would change the name.
    fixed: Vec<usize>,
    /// Owner and target of each CNAME in the answer section, in lower case.
    aliases: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether the answer section has records other than aliases and signatures.
    pub(super) found: bool,
    /// TTL of a negative answer, from the SOA in the authority section.
    pub(super) negative: Option<u32>,
    /// The smallest TTL in the answer section.
    pub(super) floor_of_answers: u32,
}

impl<'m> ReplyReader<'m> {
    /// Starts reading at `at`, the end of the question.
    pub(super) fn new(message: &'m [u8], at: usize) -> ReplyReader<'m> {
        ReplyReader {
            message,
            at,
            fixed: Vec::new(),
            aliases: Vec::new(),
            found: false,
            negative: None,
            floor_of_answers: u32::MAX,
        }
    }

    /// Reads the next record of a section: 0 is answer, 1 authority, 2 additional. `None` if the record is malformed.
    pub(super) fn record(&mut self, section: usize) -> Option<Record<'m>> {
        let owner = self.at;
        self.walk(owner, |_| {})?;
        let record = Record::parse(self.message, owner)?;
        let Record { fixed, rtype, rdata, end, .. } = record;
        let (start, ttl) = (fixed + FIXED_LEN, u32::from_be_bytes(record.ttl));
        self.fixed.push(fixed);
        let sound = match rtype {
            rtype::A => rdata.len() == 4,
            rtype::AAAA => rdata.len() == 16,
            rtype::CNAME | rtype::NS | rtype::PTR | rtype::DNAME => self.ends(start, end),
            rtype::MX => rdata.len() > 2 && self.ends(start + 2, end),
            rtype::SRV => rdata.len() > 6 && self.ends(start + 6, end),
            rtype::SOA => self.is_soa(start, end),
            _ => true,
        };
        if !sound {
            return None;
        }
        if section == 0 {
            self.floor_of_answers = self.floor_of_answers.min(seconds(ttl));
            self.found |= !matches!(rtype, rtype::CNAME | rtype::DNAME | rtype::RRSIG);
            if rtype == rtype::CNAME {
                self.aliases.push((self.name_at(owner)?, self.name_at(start)?));
            }
        }
        if section == 1 && rtype == rtype::SOA {
            let minimum = u32::from_be_bytes(*rdata.last_chunk()?);
            self.negative = Some(seconds(ttl).min(seconds(minimum)));
        }
        self.at = end;
        Some(record)
    }

    /// Whether a name starts at `start` and ends at `end`.
    fn ends(&self, start: usize, end: usize) -> bool {
        skip_name(self.message, start) == Some(end) && self.walk(start, |_| {}).is_some()
    }

    /// Whether the rdata consists of two names and five 32-bit integers (RFC 1035 section 3.3.13).
    fn is_soa(&self, start: usize, end: usize) -> bool {
        let second = skip_name(self.message, start).filter(|_| self.walk(start, |_| {}).is_some());
        second.is_some_and(|second| end >= 20 && self.ends(second, end - 20))
    }

    /// The name at `at`, uncompressed and in lower case.
    fn name_at(&self, at: usize) -> Option<Vec<u8>> {
        let mut name = Vec::with_capacity(64);
        self.walk(at, |label| name.extend(label.iter().map(u8::to_ascii_lowercase)))?;
        Some(name)
    }

    /// Walks the name at `at`, label by label, including the root label. A compression pointer has to refer to a prior
    /// occurrence (RFC 1035 section 4.1.4), so each one leads further back, to labels that end before it.
    fn walk(&self, mut at: usize, mut label: impl FnMut(&[u8])) -> Option<()> {
        let (mut before, mut end, mut length) = (at, self.message.len(), 0);
        // No valid name takes more steps, even with a pointer before each label.
        for _ in 0..=MAX_NAME {
            match *self.message.get(at)? {
                octets @ 0..=63 => {
                    let octets =
                        self.message.get(at..=at + usize::from(octets)).filter(|octets| at + octets.len() <= end)?;
                    if self.is_fixed(at, octets.len()) {
                        return None;
                    }
                    label(octets);
                    at += octets.len();
                    length += octets.len();
                    match octets.len() {
                        _ if length > MAX_NAME => return None,
                        1 => return Some(()),
                        _ => {}
                    }
                }
                0xc0..=0xff => {
                    let target = usize::from(u16_at(self.message, at)? & 0x3fff);
                    if target >= before || target < HEADER_LEN || at + 2 > end || self.is_fixed(at, 2) {
                        return None;
                    }
                    (at, before, end) = (target, target, end.min(at));
                }
                _ => return None,
            }
        }
        None
    }

    /// Whether any of the `length` octets at `at` belongs to a record's fixed part, between owner and rdata.
    fn is_fixed(&self, at: usize, length: usize) -> bool {
        let next = self.fixed.partition_point(|fixed| fixed + FIXED_LEN <= at);
        self.fixed.get(next).is_some_and(|fixed| *fixed < at + length)
    }

    /// The owner of the record at `at`; `None` if it is a pointer to the question, or cannot be read.
    pub(super) fn owner_at(&self, at: usize) -> Option<Vec<u8>> {
        let is_question = u16_at(self.message, at) == Some(0xc000 | HEADER_LEN as u16);
        if is_question { None } else { self.name_at(at) }
    }

    /// The name in the rdata of a record whose addresses are useful to whoever asked for it: MX, NS or SRV.
    pub(super) fn target_of(&self, record: &Record<'_>) -> Option<Vec<u8>> {
        let start = record.fixed + FIXED_LEN;
        match record.rtype {
            rtype::NS => self.name_at(start),
            rtype::MX => self.name_at(start + 2),
            rtype::SRV => self.name_at(start + 6),
            _ => None,
        }
    }

    /// Returns the question's name and the targets of the CNAME chain that starts there, in order.
    ///
    /// # Errors
    /// [`InvalidReply::CnameLoop`] if the chain loops or is too long.
    pub(super) fn chain(&self, question: &[u8]) -> Result<Vec<Vec<u8>>, InvalidReply> {
        let asked = question.get(..question.len().saturating_sub(4)).unwrap_or(&[]);
        let mut chain: Vec<Vec<u8>> = vec![asked.to_vec()];
        for _ in 0..=CHAIN {
            let name = chain.last();
            match self.aliases.iter().find(|(owner, _)| Some(owner) == name) {
                Some((_, target)) => chain.push(target.clone()),
                None => return Ok(chain),
            }
        }
        Err(InvalidReply::CnameLoop)
    }
}
