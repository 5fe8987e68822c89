//! Writing a reply into a buffer that is already there.

use super::{HEADER_LEN, rtype};

/// Octets of an OPT record without options.
pub const OPT_LEN: usize = 11;

/// Extended DNS error codes (RFC 8914 section 4) that Callsign sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum ExtendedError {
    /// The server has not learnt the cluster yet.
    NotReady = 14,
}

/// A section that records are written to, in the order of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Offset 6 of the header counts it.
    Answer = 6,
    /// Offset 8.
    Authority = 8,
    /// Offset 10.
    Additional = 10,
}

/// A reply in the making. Every `push` either fits whole or writes nothing.
pub struct Reply<'b> {
    buffer: &'b mut [u8],
    at: usize,
    limit: usize,
}

impl<'b> Reply<'b> {
    /// Starts a reply with the header and question of `query[..end]`; `limit` is the largest reply that may be sent,
    /// of which `reserved` octets are kept for an OPT record. `None` when not even the question fits.
    #[inline]
    pub fn start(
        buffer: &'b mut [u8],
        query: &[u8],
        end: usize,
        flags: u16,
        limit: usize,
        reserved: usize,
    ) -> Option<Reply<'b>> {
        let limit = limit.min(buffer.len()).checked_sub(reserved)?;
        let head = query.get(..end)?;
        if end > limit || end < HEADER_LEN {
            return None;
        }
        buffer.get_mut(..end)?.copy_from_slice(head);
        buffer.get_mut(2..4)?.copy_from_slice(&flags.to_be_bytes());
        let questions = u8::from(end > HEADER_LEN);
        buffer.get_mut(4..HEADER_LEN)?.copy_from_slice(&[0, questions, 0, 0, 0, 0, 0, 0]);
        Some(Reply { buffer, at: end, limit })
    }

    /// Where the next octet goes: the offset that a compression pointer to it would name.
    #[inline(always)]
    pub fn at(&self) -> usize {
        self.at
    }

    /// Octets that still fit.
    #[inline(always)]
    pub fn room(&self) -> usize {
        self.limit - self.at
    }

    /// Appends `octets` and says whether they fitted.
    #[inline(always)]
    #[must_use]
    pub fn push(&mut self, octets: &[u8]) -> bool {
        let end = self.at + octets.len();
        if end > self.limit {
            return false;
        }
        match self.buffer.get_mut(self.at..end) {
            Some(place) => place.copy_from_slice(octets),
            None => return false,
        }
        self.at = end;
        true
    }

    /// Appends several runs of octets as one: all of them or none.
    #[inline(always)]
    #[must_use]
    pub fn push_all(&mut self, runs: &[&[u8]]) -> bool {
        let before = self.at;
        for run in runs {
            if !self.push(run) {
                self.at = before;
                return false;
            }
        }
        true
    }

    /// Takes back everything from `at` on.
    #[inline(always)]
    pub fn rewind(&mut self, at: usize) {
        self.at = at.min(self.at);
    }

    /// Overwrites two octets that were written before, such as an owner pointer or an rdata length.
    #[inline(always)]
    pub fn patch(&mut self, at: usize, value: u16) {
        if let Some(place) = self.buffer.get_mut(at..at + 2).filter(|_| at + 2 <= self.at) {
            place.copy_from_slice(&value.to_be_bytes());
        }
    }

    /// Adds `records` to the count of a section.
    #[inline(always)]
    pub fn count(&mut self, section: Section, records: u16) {
        let place = self.buffer.get_mut(section as usize..);
        if let Some(count) = place.and_then(|place| place.first_chunk_mut::<2>()) {
            *count = u16::from_be_bytes(*count).wrapping_add(records).to_be_bytes();
        }
    }

    /// Sets bits in the header's flags.
    #[inline(always)]
    pub fn set_flags(&mut self, bits: u16) {
        if let Some(flags) = self.buffer.get_mut(2..).and_then(|rest| rest.first_chunk_mut::<2>()) {
            *flags = (u16::from_be_bytes(*flags) | bits).to_be_bytes();
        }
    }

    /// Ends the reply with its OPT record, if the client speaks EDNS, in the octets reserved for it. The upper eight
    /// bits of the rcode live there (RFC 6891 section 6.1.3), the lower four in the header.
    #[inline]
    pub fn finish(mut self, rcode: u16, edns: Option<(u16, bool)>, error: Option<ExtendedError>) -> usize {
        self.set_flags(rcode & 0x0f);
        if let Some((payload, dnssec_ok)) = edns {
            self.limit = self.buffer.len();
            let [size_high, size_low] = payload.to_be_bytes();
            let (extended, flags) = ((rcode >> 4) as u8, u8::from(dnssec_ok) << 7);
            let fitted = match error {
                None => self.push(&[0, 0, rtype::OPT as u8, size_high, size_low, extended, 0, flags, 0, 0, 0]),
                // RFC 8914 section 2: option 15, the code, and no text.
                Some(error) => {
                    let [high, low] = (error as u16).to_be_bytes();
                    let opt = [0, 0, rtype::OPT as u8, size_high, size_low, extended, 0, flags, 0];
                    self.push_all(&[&opt, &[0, 6, 0, 15, 0, 2, high, low]])
                }
            };
            if fitted {
                self.count(Section::Additional, 1);
            }
        }
        self.at
    }
}
