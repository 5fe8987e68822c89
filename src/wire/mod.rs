//! Ground floor: DNS messages as bytes (RFC 1035 section 4).
//!
//! Nothing here knows of clusters, sockets or tables, and nothing here allocates. A query is read by [`Query::parse`];
//! a reply is written by [`Reply`].

mod edns;
mod header;
mod name;
mod query;
mod reply;

pub use edns::{Edns, freshness, has_option};
pub(crate) use edns::{FIXED, Record, options, skip_name};
pub use header::{HEADER_LEN, Header, flags};
pub use name::{MAX_LABEL, MAX_NAME, Name, NameError, label_of, name_from_text, same, text_of};
pub use query::{Malformed, Query, Question};
pub use reply::{OPT_LEN, Reply, Section, extended_error};

/// Response codes (RFC 1035 section 4.1.1, RFC 6891 section 9).
pub mod rcode {
    /// The question was answered, perhaps with nothing (NODATA).
    pub const NOERROR: u16 = 0;
    /// The message could not be understood.
    pub const FORMERR: u16 = 1;
    /// The server cannot answer now.
    pub const SERVFAIL: u16 = 2;
    /// The name does not exist.
    pub const NXDOMAIN: u16 = 3;
    /// The opcode is not implemented.
    pub const NOTIMP: u16 = 4;
    /// The server will not answer this; ask another.
    pub const REFUSED: u16 = 5;
    /// The EDNS version is not supported.
    pub const BADVERS: u16 = 16;
}

/// Record types that Callsign treats by name (IANA DNS parameters).
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
    /// Another name for all below a name (RFC 6672).
    pub const DNAME: u16 = 39;
    /// EDNS pseudo record (RFC 6891).
    pub const OPT: u16 = 41;
    /// Signature of an rrset (RFC 4034).
    pub const RRSIG: u16 = 46;
    /// Incremental transfer (RFC 1995).
    pub const IXFR: u16 = 251;
    /// Whole transfer (RFC 5936).
    pub const AXFR: u16 = 252;
    /// Any type (RFC 8482).
    pub const ANY: u16 = 255;
}

/// The Internet class; every other class is refused.
pub const CLASS_IN: u16 = 1;

/// A big-endian 16-bit number at `at`, if the bytes reach that far.
#[inline(always)]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|pair| u16::from_be_bytes(*pair))
}
