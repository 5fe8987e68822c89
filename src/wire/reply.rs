//! Writing a reply into an existing buffer.

use super::{HEADER_LEN, rtype};

/// Length of an OPT record without options, in octets.
pub const OPT_LEN: usize = 11;

/// Extended DNS errors (RFC 8914) that Callsign sends, encoded as EDNS options: option code 15, length, error code.
pub mod extended_error {
    /// The answer has expired, but no fresh one is available (section 4.4).
    pub const STALE_ANSWER: [u8; 6] = [0, 15, 0, 2, 0, 3];
    /// The server has not completed its first sync with the cluster (section 4.15).
    pub const NOT_READY: [u8; 6] = [0, 15, 0, 2, 0, 14];
    /// No upstream returned a usable reply (section 4.23).
    pub const NO_REACHABLE_AUTHORITY: [u8; 6] = [0, 15, 0, 2, 0, 22];
    /// Exchanges with the upstreams failed with a network error (section 4.24).
    pub const NETWORK_ERROR: [u8; 6] = [0, 15, 0, 2, 0, 23];
    /// The answer is withheld on the operator's request (section 4.18).
    pub const FILTERED: [u8; 6] = [0, 15, 0, 2, 0, 17];
    /// The server does not do this for this client (section 4.19): its share of the upstreams' work is used up.
    pub const PROHIBITED: [u8; 6] = [0, 15, 0, 2, 0, 18];
    /// Any other error (section 4.1); Callsign sends it when it is overloaded.
    pub const OTHER: [u8; 6] = [0, 15, 0, 2, 0, 0];
}

/// A section that records are written to, in message order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Records that answer the question.
    Answer,
    /// The SOA of a negative answer.
    Authority,
    /// Glue, and the OPT record.
    Additional,
}

/// A reply under construction. Every `push` writes all of its octets or none. The header is held separately and written
/// once, at the end.
pub struct Reply<'b> {
    buffer: &'b mut [u8],
    at: usize,
    limit: usize,
    flags: u16,
    counts: [u16; 3],
}

impl<'b> Reply<'b> {
    /// Starts a reply with the header and question in `query[..end]`. `limit` is the maximum length of the reply in
    /// octets, of which `reserved` are set aside for an OPT record. Returns `None` if the question does not fit.
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
        Some(Reply { buffer, at: end, limit, flags, counts: [0; 3] })
    }

    /// Offset of the next octet in the message, as a compression pointer would encode it.
    #[inline(always)]
    pub fn at(&self) -> usize {
        self.at
    }

    /// Number of octets that still fit.
    #[inline(always)]
    pub fn room(&self) -> usize {
        self.limit - self.at
    }

    /// Appends `octets`; returns whether they fit.
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

    /// Appends several octet strings, all or none; returns whether they fit.
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

    /// Discards everything from offset `at` on.
    #[inline(always)]
    pub fn rewind(&mut self, at: usize) {
        self.at = at.min(self.at);
    }

    /// Overwrites two octets that were written earlier, such as an owner pointer or an rdata length.
    #[inline(always)]
    pub fn patch(&mut self, at: usize, value: u16) {
        if let Some(place) = self.buffer.get_mut(at..at + 2).filter(|_| at + 2 <= self.at) {
            place.copy_from_slice(&value.to_be_bytes());
        }
    }

    /// Overwrites the TTL of a record that was written earlier.
    #[inline(always)]
    pub fn patch_ttl(&mut self, at: usize, ttl: u32) {
        if let Some(place) = self.buffer.get_mut(at..at + 4).filter(|_| at + 4 <= self.at) {
            place.copy_from_slice(&ttl.to_be_bytes());
        }
    }

    /// Adds `records` to the count of a section.
    #[inline(always)]
    pub fn count(&mut self, section: Section, records: u16) {
        let count = &mut self.counts[section as usize];
        *count = count.wrapping_add(records);
    }

    /// Sets bits in the header's flags.
    #[inline(always)]
    pub fn set_flags(&mut self, bits: u16) {
        self.flags |= bits;
    }

    /// Appends an OPT record with options, all or nothing; returns whether it fits.
    #[cold]
    fn push_with_options(&mut self, mut opt: [u8; OPT_LEN], options: &[&[u8]]) -> bool {
        let length: usize = options.iter().map(|option| option.len()).sum();
        opt[9..].copy_from_slice(&(length as u16).to_be_bytes());
        let before = self.at;
        let fits = self.push(&opt) && options.iter().all(|option| self.push(option));
        if !fits {
            self.at = before;
        }
        fits
    }

    /// Finishes the reply and returns its length. If the client uses EDNS, the OPT record with all `options` goes into
    /// the reserved octets. It holds the upper eight bits of the rcode (RFC 6891 section 6.1.3), the header the lower four.
    /// `has_question` is whether the question was copied.
    #[inline(always)]
    pub fn finish(&mut self, rcode: u16, has_question: bool, edns: Option<(u16, u8)>, options: &[&[u8]]) -> usize {
        if let Some((payload, flags)) = edns {
            self.limit = self.buffer.len();
            let [size_high, size_low] = payload.to_be_bytes();
            let extended = (rcode >> 4) as u8;
            let opt = [0, 0, rtype::OPT as u8, size_high, size_low, extended, 0, flags, 0, 0, 0];
            let fitted = if options.is_empty() { self.push(&opt) } else { self.push_with_options(opt, options) };
            self.count(Section::Additional, u16::from(fitted));
        }
        let [f0, f1] = (self.flags | rcode & 0x0f).to_be_bytes();
        let [[an0, an1], [ns0, ns1], [ar0, ar1]] = self.counts.map(u16::to_be_bytes);
        if let Some([_, _, header @ ..]) = self.buffer.first_chunk_mut::<HEADER_LEN>() {
            *header = [f0, f1, 0, u8::from(has_question), an0, an1, ns0, ns1, ar0, ar1];
        }
        self.at
    }
}
