//! EDNS(0): the OPT pseudo record of a query (RFC 6891).

use super::query::Malformed;
use super::{HEADER_LEN, Header, rtype, u16_at};

/// The EDNS parameters of a client, from its OPT record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// The largest datagram that the client accepts, in octets, as advertised.
    pub payload: u16,
    /// EDNS version; only 0 is supported.
    pub version: u8,
    /// The upper eight bits of the flags.
    flags: u8,
    /// Offset of the cookie option in the message (RFC 7873); 0 if there is none.
    cookie_at: u16,
}

/// Code of the cookie option (RFC 7873 section 4).
const COOKIE: u16 = 10;

const OPT: u8 = rtype::OPT as u8;
/// DO (RFC 3225).
const DNSSEC_OK: u8 = 0x80;

impl Edns {
    /// Returns the flags for the reply's OPT record: the client's DO bit, unchanged (RFC 3225 section 3).
    #[inline(always)]
    pub fn reply_flags(&self) -> u8 {
        self.flags & DNSSEC_OK
    }

    /// Parses the records after the question, which ends at `at`. Most queries have none, or one OPT without options.
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
                return Ok(Some(Edns { payload, version, flags, cookie_at: 0 }));
            }
        }
        Edns::find(message, header, at)
    }

    /// Returns the OPT of a message that is not a valid query, if it has one that can be read.
    #[cold]
    pub fn salvage(message: &[u8], header: Header) -> Option<Edns> {
        let mut at = HEADER_LEN;
        for _ in 0..header.questions {
            at = skip_name(message, at)? + 4;
        }
        Edns::find(message, header, at).ok().flatten()
    }

    /// Returns the data of the cookie option in the message.
    #[inline(always)]
    pub fn cookie<'m>(&self, message: &'m [u8]) -> Option<&'m [u8]> {
        if self.cookie_at == 0 {
            return None;
        }
        let (code, option) = options(message.get(usize::from(self.cookie_at)..)?).next()??;
        option.get(4..).filter(|_| code == COOKIE)
    }

    /// Searches all records after the question for an OPT; a query may have at most one.
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
                return Err(Malformed::DuplicateOpt);
            }
            if !record.root {
                return Err(Malformed::Records);
            }
            let mut place = record.end - record.rdata.len();
            let mut cookie_at = 0;
            for option in options(record.rdata) {
                let (code, octets) = option.ok_or(Malformed::Records)?;
                let length = octets.len() - 4;
                if code == COOKIE && cookie_at == 0 {
                    // A client's cookie, and perhaps a server's (RFC 7873 section 5.2.2).
                    if length != 8 && !(16..=40).contains(&length) {
                        return Err(Malformed::Records);
                    }
                    cookie_at = place as u16;
                }
                place += octets.len();
            }
            let [_, version, flags, _] = record.ttl;
            found = Some(Edns { payload: record.class, version, flags, cookie_at });
        }
        Ok(found)
    }
}

/// Iterates over the options of an OPT record: the code of each and all its octets, including code and length (RFC 6891
/// section 6.1.2). A truncated last option yields `None`.
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

/// Whether the OPT record of a query has this option; `false` if the message is malformed.
pub fn has_option(message: &[u8], code: u16) -> bool {
    let mut found = false;
    let whole = each_record(message, |_, record| {
        found |= record.rtype == rtype::OPT && options(record.rdata).flatten().any(|(this, _)| this == code);
    });
    found && whole.is_some()
}

/// Code of the padding option (RFC 7830).
pub const PADDING: u16 = 12;
/// Code of the edns-tcp-keepalive option (RFC 7828).
pub const TCP_KEEPALIVE: u16 = 11;

/// Appends an option to a reply whose last record is its OPT. Without one, or if the reply would get too long, the reply
/// stays as it is.
pub fn append_option(reply: &mut Vec<u8>, code: u16, data: &[u8]) {
    let mut last = None;
    let whole =
        each_record(reply, |_, record| last = Some((record.rtype, record.fixed, record.rdata.len(), record.end)));
    let Some((rtype::OPT, fixed, length, end)) = last.filter(|_| whole.is_some()) else { return };
    let option = 4 + data.len();
    if end != reply.len() || end + option > usize::from(u16::MAX) {
        return;
    }
    if let Some(place) = reply.get_mut(fixed + 8..fixed + 10) {
        place.copy_from_slice(&((length + option) as u16).to_be_bytes());
    }
    reply.extend_from_slice(&code.to_be_bytes());
    reply.extend_from_slice(&(data.len() as u16).to_be_bytes());
    reply.extend_from_slice(data);
}

/// Pads a reply to a multiple of 468 octets (RFC 8467 section 4.1), so that its length tells less about its content.
pub fn pad(reply: &mut Vec<u8>) {
    const BLOCK: usize = 468;
    let padding = (BLOCK - (reply.len() + 4) % BLOCK) % BLOCK;
    append_option(reply, PADDING, vec![0; padding].as_slice());
}

/// Number of seconds for which an HTTP cache may store a reply (RFC 8484 section 5.1): the smallest TTL of the answer
/// section; for a negative reply, the smaller of its SOA's TTL and minimum. `None` if the reply has neither.
pub fn freshness(reply: &[u8]) -> Option<u32> {
    let mut smallest = None::<u32>;
    each_record(reply, |section, record| {
        let ttl = u32::from_be_bytes(record.ttl);
        let seconds = match (section, record.rtype, record.rdata.last_chunk()) {
            (MessageSection::Answer, ..) => ttl,
            (MessageSection::Authority, rtype::SOA, Some(minimum)) => ttl.min(u32::from_be_bytes(*minimum)),
            _ => return,
        };
        smallest = Some(smallest.map_or(seconds, |smallest| smallest.min(seconds)));
    })?;
    smallest
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum MessageSection {
    Answer,
    Authority,
    Additional,
}

/// Calls `visit` with each record of a message. Returns `None` if the message is malformed; `visit` has then received the
/// records before the error.
fn each_record<'m>(message: &'m [u8], mut visit: impl FnMut(MessageSection, &Record<'m>)) -> Option<()> {
    let header = Header::parse(message)?;
    let mut at = HEADER_LEN;
    for _ in 0..header.questions {
        at = skip_name(message, at)? + 4;
    }
    let parts = [
        (MessageSection::Answer, header.answers),
        (MessageSection::Authority, header.authorities),
        (MessageSection::Additional, header.additionals),
    ];
    for (part, count) in parts {
        for _ in 0..count {
            let record = Record::parse(message, at)?;
            at = record.end;
            visit(part, &record);
        }
    }
    Some(())
}

/// A resource record whose rdata is not interpreted.
pub(crate) struct Record<'m> {
    /// Whether the owner name is the root.
    pub(crate) root: bool,
    /// Offset of the type field, directly after the owner name.
    pub(crate) fixed: usize,
    pub(crate) rtype: u16,
    class: u16,
    pub(crate) ttl: [u8; 4],
    pub(crate) rdata: &'m [u8],
    pub(crate) end: usize,
}

/// Length of the type, class, TTL and RDLENGTH fields together, in octets.
pub(crate) const FIXED_LEN: usize = 10;

impl<'m> Record<'m> {
    #[inline]
    pub(crate) fn parse(message: &'m [u8], at: usize) -> Option<Record<'m>> {
        let fixed = skip_name(message, at)?;
        let rtype = u16_at(message, fixed)?;
        let class = u16_at(message, fixed + 2)?;
        let ttl = *message.get(fixed + 4..)?.first_chunk()?;
        let start = fixed + FIXED_LEN;
        let end = start + usize::from(u16_at(message, fixed + 8)?);
        Some(Record { root: fixed == at + 1, fixed, rtype, class, ttl, rdata: message.get(start..end)?, end })
    }
}

/// Returns the offset just past the name at `at`: after its root label or its first compression pointer.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_appended_only_to_a_last_opt() {
        let header = |additionals| [0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, additionals];
        let opt = [0, 0, OPT, 4, 208, 0, 0, 0, 0, 0, 0];
        let other = [0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0];
        let cases: &[(&str, Vec<u8>, bool)] = &[
            ("an OPT", [&header(1)[..], &opt].concat(), true),
            ("an OPT after another record", [&header(2)[..], &other, &opt].concat(), true),
            ("an OPT before another record", [&header(2)[..], &opt, &other].concat(), false),
            ("no OPT", header(0).to_vec(), false),
            ("a malformed message", [&header(2)[..], &opt].concat(), false),
            ("octets after the message", [&header(1)[..], &opt, &[0]].concat(), false),
        ];
        for (case, message, is_padded) in cases {
            let mut reply = message.clone();
            append_option(&mut reply, TCP_KEEPALIVE, &[0, 70]);
            assert_eq!(has_option(&reply, TCP_KEEPALIVE), *is_padded, "{case}");
            pad(&mut reply);
            assert_eq!(reply.len() % 468 == 0, *is_padded, "{case}: {}", reply.len());
            assert_eq!(*is_padded, has_option(&reply, PADDING), "{case}");
        }
        for length in 0..1000 {
            let mut reply = [&header(1)[..], &opt].concat();
            append_option(&mut reply, 65_001, &vec![0; length]);
            pad(&mut reply);
            assert!(reply.len() % 468 == 0 && has_option(&reply, PADDING), "{length}");
        }
    }
}
