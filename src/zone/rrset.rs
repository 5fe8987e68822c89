//! Address rrsets, encoded once when the table is built.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::wire::{CLASS_IN, rtype};

/// The owner of every encoded record: a pointer to the question's name, which follows the header.
pub const OWNER: [u8; 2] = [0xc0, 0x0c];

/// Octets of an encoded A record.
pub const A_LEN: usize = 16;
/// Octets of an encoded AAAA record.
pub const AAAA_LEN: usize = 28;

/// Records of one type, all of one length, ready to be copied behind a question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rrset {
    records: Box<[u8]>,
}

impl Rrset {
    /// A records.
    pub fn a(addresses: &[Ipv4Addr], ttl: u32) -> Rrset {
        let mut records = Vec::with_capacity(addresses.len() * A_LEN);
        for address in addresses {
            records.extend_from_slice(&record_head(OWNER, rtype::A, ttl, 4));
            records.extend_from_slice(&address.octets());
        }
        Rrset { records: records.into() }
    }

    /// AAAA records.
    pub fn aaaa(addresses: &[Ipv6Addr], ttl: u32) -> Rrset {
        let mut records = Vec::with_capacity(addresses.len() * AAAA_LEN);
        for address in addresses {
            records.extend_from_slice(&record_head(OWNER, rtype::AAAA, ttl, 16));
            records.extend_from_slice(&address.octets());
        }
        Rrset { records: records.into() }
    }

    /// The encoded records, one after the other.
    #[inline(always)]
    pub fn octets(&self) -> &[u8] {
        &self.records
    }

    /// Whether there is no record.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

/// Everything of a record before its rdata (RFC 1035 section 3.2.1), with an owner that is a pointer.
#[inline(always)]
pub fn record_head(owner: [u8; 2], rtype: u16, ttl: u32, length: u16) -> [u8; 12] {
    let [type_high, type_low] = rtype.to_be_bytes();
    let [class_high, class_low] = CLASS_IN.to_be_bytes();
    let [ttl0, ttl1, ttl2, ttl3] = ttl.to_be_bytes();
    let [length_high, length_low] = length.to_be_bytes();
    let [owner_high, owner_low] = owner;
    [owner_high, owner_low, type_high, type_low, class_high, class_low, ttl0, ttl1, ttl2, ttl3, length_high, length_low]
}
