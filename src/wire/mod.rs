//! The lowest layer: DNS messages as octets (RFC 1035 section 4).
//!
//! This module does not depend on clusters, sockets or zones, and only its conversions to and from text allocate.
//! [`Query::parse`] parses a query; [`Reply`] writes a reply.

mod edns;
mod header;
mod name;
mod query;
mod reply;

pub use edns::{Edns, PADDING, TCP_KEEPALIVE, append_option, freshness, has_option, pad};
pub(crate) use edns::{FIXED_LEN, Record, options, skip_name};
pub use header::{HEADER_LEN, Header, flags};
pub use name::{MAX_LABEL, MAX_NAME, Name, NameError, label_of, name_from_text, same, text_of};
pub use query::{Malformed, Query, Question};
pub use reply::{OPT_LEN, Reply, Section, extended_error};

/// Response codes (RFC 1035 section 4.1.1, RFC 6891 section 9).
pub mod rcode {
    /// The question was answered, possibly without any record (NODATA).
    pub const NOERROR: u16 = 0;
    /// The message could not be understood.
    pub const FORMERR: u16 = 1;
    /// The server is currently unable to answer.
    pub const SERVFAIL: u16 = 2;
    /// The name does not exist.
    pub const NXDOMAIN: u16 = 3;
    /// The opcode is not implemented.
    pub const NOTIMP: u16 = 4;
    /// The server refuses to answer this query.
    pub const REFUSED: u16 = 5;
    /// The EDNS version is not supported.
    pub const BADVERS: u16 = 16;
}

/// Record types that Callsign handles specially (IANA DNS parameters).
pub mod rtype {
    /// IPv4 address (RFC 1035).
    pub const A: u16 = 1;
    /// Name server (RFC 1035).
    pub const NS: u16 = 2;
    /// Canonical name (RFC 1035).
    pub const CNAME: u16 = 5;
    /// Start of authority (RFC 1035).
    pub const SOA: u16 = 6;
    /// Pointer (RFC 1035).
    pub const PTR: u16 = 12;
    /// Mail exchange (RFC 1035).
    pub const MX: u16 = 15;
    /// Text (RFC 1035).
    pub const TXT: u16 = 16;
    /// IPv6 address (RFC 3596).
    pub const AAAA: u16 = 28;
    /// Server selection (RFC 2782).
    pub const SRV: u16 = 33;
    /// Redirection of a whole subtree (RFC 6672).
    pub const DNAME: u16 = 39;
    /// EDNS pseudo record (RFC 6891).
    pub const OPT: u16 = 41;
    /// Signature of an rrset (RFC 4034).
    pub const RRSIG: u16 = 46;
    /// Incremental zone transfer (RFC 1995).
    pub const IXFR: u16 = 251;
    /// Full zone transfer (RFC 5936).
    pub const AXFR: u16 = 252;
    /// Any type (RFC 8482).
    pub const ANY: u16 = 255;
}

/// The Internet class; every other class is refused.
pub const CLASS_IN: u16 = 1;

/// Returns the big-endian 16-bit number at `at`; `None` if it extends past the end of `bytes`.
#[inline(always)]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|pair| u16::from_be_bytes(*pair))
}
