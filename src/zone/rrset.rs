//! Address rrsets, encoded once when the table is built.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::wire::{CLASS_IN, Reply, rtype};

/// The owner of every encoded record: a pointer to the question's name, which follows the header.
pub const OWNER: [u8; 2] = [0xc0, 0x0c];

/// Length of an encoded A record in octets.
pub const A_LEN: usize = 16;
/// Length of an encoded AAAA record in octets.
pub const AAAA_LEN: usize = 28;

/// Records of one type and one length, ready to be copied after a question. A single record, the most common case, is
/// stored inline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rrset(RrsetBytes);

#[derive(Clone, Debug, PartialEq, Eq)]
enum RrsetBytes {
    A([u8; A_LEN]),
    Aaaa([u8; AAAA_LEN]),
    Boxed(Box<[u8]>),
}

impl Default for Rrset {
    fn default() -> Rrset {
        Rrset(RrsetBytes::Boxed(Box::default()))
    }
}

impl Rrset {
    /// Encodes A records; `ttl` is in seconds.
    pub fn a(addresses: &[Ipv4Addr], ttl: u32) -> Rrset {
        let mut records = Vec::with_capacity(addresses.len() * A_LEN);
        for address in addresses {
            records.extend_from_slice(&record_head(OWNER, rtype::A, ttl, 4));
            records.extend_from_slice(&address.octets());
        }
        Rrset(<[u8; A_LEN]>::try_from(&*records).map_or_else(|_| RrsetBytes::Boxed(records.into()), RrsetBytes::A))
    }

    /// Encodes AAAA records; `ttl` is in seconds.
    pub fn aaaa(addresses: &[Ipv6Addr], ttl: u32) -> Rrset {
        let mut records = Vec::with_capacity(addresses.len() * AAAA_LEN);
        for address in addresses {
            records.extend_from_slice(&record_head(OWNER, rtype::AAAA, ttl, 16));
            records.extend_from_slice(&address.octets());
        }
        Rrset(
            <[u8; AAAA_LEN]>::try_from(&*records).map_or_else(|_| RrsetBytes::Boxed(records.into()), RrsetBytes::Aaaa),
        )
    }

    /// The encoded records, one after the other.
    #[inline(always)]
    pub fn octets(&self) -> &[u8] {
        match &self.0 {
            RrsetBytes::A(record) => record,
            RrsetBytes::Aaaa(record) => record,
            RrsetBytes::Boxed(records) => records,
        }
    }

    /// Writes the record if there is exactly one, and returns whether it did. The length is a compile-time constant.
    #[inline(always)]
    pub fn push_lone(&self, out: &mut Reply<'_>) -> bool {
        match &self.0 {
            RrsetBytes::A(record) => out.push(record),
            RrsetBytes::Aaaa(record) => out.push(record),
            RrsetBytes::Boxed(_) => false,
        }
    }

    /// The address, if the rrset is exactly one A record.
    pub fn lone_a(&self) -> Option<[u8; 4]> {
        match &self.0 {
            RrsetBytes::A(record) => record.last_chunk().copied(),
            _ => None,
        }
    }

    /// Whether the rrset has no records.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        matches!(&self.0, RrsetBytes::Boxed(records) if records.is_empty())
    }
}

/// The labels of the name server below a cluster domain: the start of the SOA's MNAME and of the NS record's target.
pub const NAME_SERVER: &[u8; 7] = b"\x02ns\x03dns";
/// The first label of the SOA's RNAME.
pub const HOSTMASTER: &[u8; 11] = b"\x0ahostmaster";

const SOA_RDATA: usize = NAME_SERVER.len() + 2 + HOSTMASTER.len() + 2 + 20;
const SOA_LEN: usize = 12 + SOA_RDATA;

/// The SOA record of a cluster domain (RFC 1035 section 3.3.13), encoded once per zone.
#[derive(Clone, Debug)]
pub struct Soa([u8; SOA_LEN]);

impl Soa {
    /// Encodes the record. `ttl`, its minimum field, is the zone's TTL, and `negative_ttl` its own, both in seconds.
    pub fn new(serial: u32, ttl: u32, negative_ttl: u32) -> Soa {
        let mut octets = [0; SOA_LEN];
        let numbers = [serial, 7200, 1800, 86_400, ttl].map(u32::to_be_bytes);
        let head = record_head(OWNER, rtype::SOA, negative_ttl, SOA_RDATA as u16);
        let parts = [&head[..], NAME_SERVER, &OWNER, HOSTMASTER, &OWNER, numbers.as_flattened()].concat();
        octets.copy_from_slice(&parts);
        Soa(octets)
    }

    /// Returns the record for the domain that `pointer` refers to in the message.
    #[inline(always)]
    pub fn at(&self, pointer: [u8; 2]) -> [u8; SOA_LEN] {
        const MNAME: usize = 12 + NAME_SERVER.len();
        const RNAME: usize = MNAME + 2 + HOSTMASTER.len();
        let mut octets = self.0;
        for place in [0, MNAME, RNAME] {
            [octets[place], octets[place + 1]] = pointer;
        }
        octets
    }

    /// The serial.
    pub fn serial(&self) -> u32 {
        self.numbers().first_chunk().map_or(0, |serial| u32::from_be_bytes(*serial))
    }

    /// Serial, refresh, retry, expire and minimum.
    pub fn numbers(&self) -> &[u8] {
        &self.0[SOA_LEN - 20..]
    }
}

/// Encodes the part of a record before its rdata (RFC 1035 section 3.2.1), with a compression pointer as its owner.
#[inline(always)]
pub fn record_head(owner: [u8; 2], rtype: u16, ttl: u32, length: u16) -> [u8; 12] {
    let [type_high, type_low] = rtype.to_be_bytes();
    let [class_high, class_low] = CLASS_IN.to_be_bytes();
    let [ttl0, ttl1, ttl2, ttl3] = ttl.to_be_bytes();
    let [length_high, length_low] = length.to_be_bytes();
    let [owner_high, owner_low] = owner;
    [owner_high, owner_low, type_high, type_low, class_high, class_low, ttl0, ttl1, ttl2, ttl3, length_high, length_low]
}
