//! The hash of labels. It is keyed, so that a user who can create Services cannot fill one page of a map.

use crate::wire::Name;

/// The key of the hash: random for each process, so that collisions cannot be computed in advance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(u64);

impl Seed {
    /// Returns a random seed, which clients cannot predict.
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

    /// Like [`Seed::label`], for a label within a name: it reads whole words and masks the octets that follow the
    /// label.
    #[inline(always)]
    pub fn label_of(self, name: &Name, index: usize) -> u64 {
        let label = name.label(index);
        let mut state = self.0 ^ label.len() as u64;
        let mut left = label.len();
        let mut at = name.start(index);
        while left >= 8 {
            state = mix(state ^ name.word(at), K1);
            (at, left) = (at + 8, left - 8);
        }
        mix(state ^ name.word(at) & !(u64::MAX << (8 * left)), K2)
    }

    /// The hash of a label inside a namespace, from the hashes of both.
    #[inline(always)]
    pub fn pair(self, label: u64, namespace: u64) -> u64 {
        mix(label ^ namespace.rotate_left(32), self.0 ^ K1)
    }
}

/// The hash of an address. It is not keyed, because clients do not choose the addresses of pods.
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

/// Packs at most seven octets into the lower octets of a word.
#[inline(always)]
fn tail(rest: &[u8]) -> u64 {
    match (rest.first_chunk::<4>(), rest.last_chunk::<4>()) {
        (Some(first), Some(last)) => {
            let above = 8 * (rest.len() - 4);
            u64::from(u32::from_le_bytes(*first)) | u64::from(u32::from_le_bytes(*last)) << above
        }
        _ => rest.iter().rev().fold(0, |word, octet| word << 8 | u64::from(*octet)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_label_does_not_depend_on_its_position() {
        for length in 1..=63u8 {
            let label: Vec<u8> = (0..=length).map(|at| if at == 0 { length } else { b'a' + at % 26 }).collect();
            let wire = [&[3, b'w', b'e', b'b'][..], &label, &[1, b'x', 0]].concat();
            let name = Name::parse(&wire, 0).unwrap();
            assert_eq!(Seed(7).label_of(&name, 1), Seed(7).label(&label), "{length}");
        }
    }
}
