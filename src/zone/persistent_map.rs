//! A persistent hash map: reads take no lock, and a change copies a path of constant length.
//!
//! # Design
//! Crates such as `im` and `rpds` have hash array mapped tries, which get deeper as they grow and hash the whole key
//! themselves. Here the caller passes the hash, which combines the hashes of two labels, and the key is compared in
//! place. The depth is constant, because an answer spends most of its time waiting for memory (`docs/performance.md`).
//!
//! Two fixed levels of 64 spread the slots over 4,096 pages by the upper twelve bits of their hash; a page is a slice
//! sorted by hash. A change copies one root, one directory and one page, whatever the size of the map. While the map
//! has no clones, as during the first load, a change copies only the page.

use std::sync::Arc;

/// An entry of a map. Entries with equal keys have equal hashes.
pub trait Slot: Clone {
    /// The hash of the slot's key.
    fn hash(&self) -> u64;
}

const FAN: usize = 64;

type Page<S> = Option<Arc<[S]>>;
type Directory<S> = [Page<S>; FAN];
type Root<S> = [Option<Arc<Directory<S>>>; FAN];

/// A persistent hash map; see the module documentation.
#[derive(Clone)]
pub struct PersistentMap<S> {
    root: Arc<Root<S>>,
    len: usize,
}

impl<S> Default for PersistentMap<S> {
    fn default() -> Self {
        PersistentMap { root: Arc::new([const { None }; FAN]), len: 0 }
    }
}

#[inline(always)]
fn page_index(hash: u64) -> (usize, usize) {
    ((hash >> 58) as usize & (FAN - 1), (hash >> 52) as usize & (FAN - 1))
}

impl<S: Slot> PersistentMap<S> {
    /// Number of slots.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the map has no slots.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The slots with this hash: at most one, unless hashes collide or a key is stored several times.
    #[inline(always)]
    pub fn with_hash(&self, hash: u64) -> impl Iterator<Item = &S> {
        self.run_from(hash).iter().take_while(move |slot| slot.hash() == hash)
    }

    /// The slots of a page, from the first whose hash is at least `hash`.
    #[inline(always)]
    pub fn run_from(&self, hash: u64) -> &[S] {
        let page = self.page(hash);
        page.get(first_at_least(page, hash)..).unwrap_or(&[])
    }

    /// The page that holds all slots with this hash. Its slots are not read.
    #[inline(always)]
    fn page(&self, hash: u64) -> &[S] {
        let (upper, lower) = page_index(hash);
        self.root[upper].as_ref().and_then(|directory| directory[lower].as_deref()).unwrap_or(&[])
    }

    /// The slot at which a search for this hash begins, without reading it: where such a slot is, if there is one, or
    /// next to it.
    #[inline(always)]
    pub fn likely(&self, hash: u64) -> Option<&S> {
        let page = self.page(hash);
        page.get(likely_index(page, hash))
    }

    /// The slots that a search for this hash probably reads, without reading them: the likely one and its neighbours.
    #[inline(always)]
    pub fn likely_run(&self, hash: u64) -> &[S] {
        let page = self.page(hash);
        let at = likely_index(page, hash);
        page.get(at.saturating_sub(1)..(at + 2).min(page.len())).unwrap_or(&[])
    }

    /// Returns the first slot with this hash that the predicate accepts.
    #[inline(always)]
    pub fn get(&self, hash: u64, is_match: impl Fn(&S) -> bool) -> Option<&S> {
        for slot in self.run_from(hash) {
            if slot.hash() != hash {
                return None;
            }
            if is_match(slot) {
                return Some(slot);
            }
        }
        None
    }

    /// Replaces the slot that the predicate accepts, or adds `slot`; returns the number of octets copied.
    pub fn insert(&mut self, slot: S, is_match: impl Fn(&S) -> bool) -> usize {
        self.change(slot.hash(), is_match, Some(slot))
    }

    /// Removes the slot that the predicate accepts, if any; returns the number of octets copied.
    pub fn remove(&mut self, hash: u64, is_match: impl Fn(&S) -> bool) -> usize {
        if self.get(hash, &is_match).is_none() {
            return 0;
        }
        self.change(hash, is_match, None)
    }

    fn change(&mut self, hash: u64, is_match: impl Fn(&S) -> bool, slot: Option<S>) -> usize {
        let (upper, lower) = page_index(hash);
        let mut copied = 0;
        if Arc::get_mut(&mut self.root).is_none() {
            copied += size_of::<Root<S>>();
        }
        let directory = Arc::make_mut(&mut self.root)[upper].get_or_insert_with(|| Arc::new([const { None }; FAN]));
        if Arc::get_mut(directory).is_none() {
            copied += size_of::<Directory<S>>();
        }
        let page = &mut Arc::make_mut(directory)[lower];
        let old: &[S] = page.as_deref().unwrap_or(&[]);
        let first = first_at_least(old, hash);
        let found = (first..old.len()).take_while(|&at| old[at].hash() == hash).find(|&at| is_match(&old[at]));
        let (before, after) = match found {
            Some(at) => (at, at + 1),
            None => (first, first),
        };
        self.len = self.len + usize::from(slot.is_some()) - usize::from(found.is_some());
        let changed: Vec<S> = old[..before].iter().cloned().chain(slot).chain(old[after..].iter().cloned()).collect();
        copied += changed.len() * size_of::<S>();
        *page = (!changed.is_empty()).then(|| changed.into());
        copied
    }

    /// Iterates over all slots, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &S> {
        self.root.iter().flatten().flat_map(|directory| directory.iter().flatten()).flat_map(|page| page.iter())
    }
}

/// The index that the bits below those that select the page predict. The hashes in a page are evenly distributed, so it
/// is right to within a step or two.
#[inline(always)]
fn likely_index<S>(page: &[S], hash: u64) -> usize {
    ((((hash >> 20) & 0xffff_ffff) * page.len() as u64) >> 32) as usize
}

/// Index of the first slot whose hash is at least `hash`.
#[inline(always)]
fn first_at_least<S: Slot>(page: &[S], hash: u64) -> usize {
    let mut at = likely_index(page, hash);
    while at > 0 && page.get(at - 1).is_some_and(|slot| slot.hash() >= hash) {
        at -= 1;
    }
    while page.get(at).is_some_and(|slot| slot.hash() < hash) {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Pair(u64, u32);
    impl Slot for Pair {
        fn hash(&self) -> u64 {
            self.0
        }
    }

    proptest! {
        /// After any sequence of changes, the map equals a BTreeMap, and earlier clones are unchanged.
        #[test]
        fn agrees_with_a_map(changes in prop::collection::vec((0u64..40, 0u64..4, prop::option::of(any::<u32>())), 0..200)) {
            let mut table = PersistentMap::<Pair>::default();
            let mut model = BTreeMap::new();
            for (index, (low, high, value)) in changes.into_iter().enumerate() {
                let key = high << 52 | low << 40;
                let before = (index % 7 == 0).then(|| (table.clone(), model.clone()));
                match value {
                    Some(value) => { table.insert(Pair(key, value), |_| true); model.insert(key, value); }
                    None => { table.remove(key, |_| true); model.remove(&key); }
                }
                if let Some((table, model)) = before {
                    prop_assert_eq!(table.iter().map(|pair| (pair.0, pair.1)).collect::<BTreeMap<_, _>>(), model);
                }
            }
            prop_assert_eq!(table.len(), model.len());
            for (key, value) in &model {
                prop_assert_eq!(table.get(*key, |_| true), Some(&Pair(*key, *value)));
            }
        }
    }

    #[test]
    fn a_change_in_a_large_map_copies_little_more_than_in_a_small_one() {
        let spread = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut copied = Vec::new();
        for size in [10u64, 100_000] {
            let mut table = PersistentMap::<Pair>::default();
            for n in 0..size {
                table.insert(Pair(spread(n), 0), |_| true);
            }
            let _held = table.clone();
            copied.push(table.insert(Pair(spread(3), 1), |_| true));
        }
        // With 100,000 slots, a page holds about 25. The root and the directory have the same size in both maps.
        assert!(copied[1] - copied[0] < 60 * size_of::<Pair>(), "{copied:?}");
    }
}
