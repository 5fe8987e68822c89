//! The hash of labels. Keyed, so that nobody who may create Services can aim at one page of the table.

/// The key of a table's hashes: random for each process, so that collisions cannot be prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(u64);

impl Seed {
    /// A seed that nobody outside can know.
    pub fn random() -> Seed {
        use std::hash::{BuildHasher, RandomState};
        Seed(RandomState::new().hash_one(0u64) | 1)
    }

    /// The hash of one label, length octet included, in lower case.
    #[inline(always)]
    pub fn label(self, label: &[u8]) -> u64 {
        let mut state = self.0 ^ label.len() as u64;
        let (words, rest) = label.as_chunks::<8>();
        for word in words {
            state = mix(state ^ u64::from_le_bytes(*word), K1);
        }
        mix(state ^ tail(rest), K2)
    }

    /// The hash of a label inside a namespace, from the hashes of both.
    #[inline(always)]
    pub fn pair(self, label: u64, namespace: u64) -> u64 {
        mix(label ^ namespace.rotate_left(32), self.0 ^ K1)
    }
}

/// The hash of an address. Not keyed: clients do not choose the addresses of pods.
#[inline(always)]
pub fn address(address: u128) -> u64 {
    mix(mix(address as u64 ^ K1, K2) ^ (address >> 64) as u64, K1)
}

const K1: u64 = 0x9e37_79b9_7f4a_7c15;
const K2: u64 = 0xa076_1d64_78bd_642f;

/// Folded multiplication: every bit of both factors reaches every bit of the result.
#[inline(always)]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64
}

/// At most seven octets as one number, without a loop: two overlapping words, or three octets.
#[inline(always)]
fn tail(rest: &[u8]) -> u64 {
    if let (Some(first), Some(last)) = (rest.first_chunk::<4>(), rest.last_chunk::<4>()) {
        u64::from(u32::from_le_bytes(*first)) << 32 | u64::from(u32::from_le_bytes(*last))
    } else if let (Some(first), Some(middle), Some(last)) = (rest.first(), rest.get(rest.len() / 2), rest.last()) {
        u64::from(*first) << 16 | u64::from(*middle) << 8 | u64::from(*last)
    } else {
        0
    }
}
