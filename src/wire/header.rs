//! The twelve octets that every message starts with (RFC 1035 section 4.1.1).

use super::u16_at;

/// Length of a message header in octets.
pub const HEADER_LEN: usize = 12;

/// Bits of the second 16-bit word of the header (RFC 1035 section 4.1.1, RFC 4035 section 3).
pub mod flags {
    /// This message is a reply.
    pub const QR: u16 = 0x8000;
    /// Four bits of opcode.
    pub const OPCODE: u16 = 0x7800;
    /// The answer is authoritative.
    pub const AA: u16 = 0x0400;
    /// The reply is truncated: records of the answer section were left out.
    pub const TC: u16 = 0x0200;
    /// The client desires recursion.
    pub const RD: u16 = 0x0100;
    /// The server offers recursion.
    pub const RA: u16 = 0x0080;
    /// The data is authentic (RFC 4035 section 3.2.3); in a query, the client requests this bit (RFC 6840 section 5.7).
    pub const AD: u16 = 0x0020;
    /// The client does its own DNSSEC checking.
    pub const CD: u16 = 0x0010;
}

/// A message header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Chosen by the client and echoed in the reply.
    pub id: u16,
    /// See [`flags`].
    pub flags: u16,
    /// Entries in the question section.
    pub questions: u16,
    /// Records in the answer section.
    pub answers: u16,
    /// Records in the authority section.
    pub authorities: u16,
    /// Records in the additional section.
    pub additionals: u16,
}

impl Header {
    /// Parses the header; returns `None` if the message is too short to contain one.
    #[inline]
    pub fn parse(message: &[u8]) -> Option<Header> {
        let header: &[u8; HEADER_LEN] = message.first_chunk()?;
        Some(Header {
            id: u16_at(header, 0)?,
            flags: u16_at(header, 2)?,
            questions: u16_at(header, 4)?,
            answers: u16_at(header, 6)?,
            authorities: u16_at(header, 8)?,
            additionals: u16_at(header, 10)?,
        })
    }

    /// The opcode, 0 (QUERY) to 15.
    #[inline]
    pub fn opcode(&self) -> u16 {
        (self.flags & flags::OPCODE) >> 11
    }

    /// Whether the message is a reply (QR=1).
    #[inline]
    pub fn is_reply(&self) -> bool {
        self.flags & flags::QR != 0
    }
}
