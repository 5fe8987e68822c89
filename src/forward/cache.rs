//! Replies of upstreams, shared by everyone who may read them: the UDP workers, which never wait for the forwarder, and
//! the forwarder, which alone writes.

use std::hash::{Hash, Hasher, RandomState};
use std::sync::Arc;

use quick_cache::sync::{Cache as Shared, DefaultLifecycle};
use quick_cache::{Equivalent, OptionsBuilder, Weighter};

use super::reply::Entry;

/// What a reply depends on, besides name and type: whether DNSSEC records are wanted, whether they are to be checked,
/// whether the upstream is to ask others.
pub(super) mod mark {
    /// DO (RFC 3225).
    pub const DNSSEC_OK: u8 = 1;
    /// CD (RFC 4035 section 3.2.2).
    pub const CHECKING_DISABLED: u8 = 2;
    /// RD is not set: an answer of what is known.
    pub const NOT_RECURSIVE: u8 = 4;
}

/// Octets after the name in a key: the type and the marks.
const TAIL: usize = 3;

/// A name in wire format and lower case, then the type, then the marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CacheKey(pub(super) Box<[u8]>);

/// A key in pieces, to look up with.
pub(super) struct CacheLookup<'n> {
    pub(super) name: &'n [u8],
    pub(super) tail: [u8; TAIL],
}

impl<'n> CacheLookup<'n> {
    #[inline]
    pub(super) fn new(name: &'n [u8], qtype: u16, marks: u8) -> CacheLookup<'n> {
        let [high, low] = qtype.to_be_bytes();
        CacheLookup { name, tail: [high, low, marks] }
    }

    pub(super) fn key(&self) -> CacheKey {
        CacheKey([self.name, &self.tail].concat().into())
    }
}

impl CacheKey {
    pub(super) fn parts(&self) -> CacheLookup<'_> {
        match self.0.split_last_chunk() {
            Some((name, tail)) => CacheLookup { name, tail: *tail },
            None => CacheLookup { name: &self.0, tail: [0; TAIL] },
        }
    }

    pub(super) fn marks(&self) -> u8 {
        self.parts().tail[2]
    }

    /// The question: name, type, class IN.
    pub(super) fn question(&self) -> Vec<u8> {
        let CacheLookup { name, tail: [high, low, _] } = self.parts();
        [name, &[high, low, 0, 1]].concat()
    }
}

impl Hash for CacheLookup<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.name);
        state.write(&self.tail);
    }
}

impl Hash for CacheKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

impl Equivalent<CacheKey> for CacheLookup<'_> {
    fn equivalent(&self, key: &CacheKey) -> bool {
        let parts = key.parts();
        parts.name == self.name && parts.tail == self.tail
    }
}

/// Weighs entries by octets, and at least so much that no more than `--cache-entries` fit.
#[derive(Clone)]
struct Octets {
    least: u64,
}

/// What the cache itself holds for an entry, in octets: the slot, its share of free slots, and the key's allocation.
const SLOT: usize = 128;

impl Weighter<CacheKey, Arc<Entry>> for Octets {
    fn weight(&self, key: &CacheKey, entry: &Arc<Entry>) -> u64 {
        ((SLOT + key.0.len() + entry.size()) as u64).max(self.least)
    }
}

/// Bounds of the cache.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// `--cache-entries`; 0: nothing is kept.
    pub entries: usize,
    /// `--cache-bytes`.
    pub octets: usize,
}

type Entries = Shared<CacheKey, Arc<Entry>, Octets, RandomState, DefaultLifecycle<CacheKey, Arc<Entry>>>;

/// The cache. Reading takes a shared lock of one shard for as long as it takes to find an entry and count a reference.
pub(super) struct Cache {
    entries: Option<Entries>,
}

impl Cache {
    pub(super) fn new(bounds: Bounds) -> Cache {
        let least = bounds.octets.div_ceil(bounds.entries.max(1)) as u64;
        // An entry is never larger than a shard: there are few.
        let options = OptionsBuilder::new()
            .shards(8)
            .estimated_items_capacity(bounds.entries)
            .weight_capacity(bounds.octets as u64)
            .build();
        let entries = options.ok().filter(|_| bounds.entries > 0).map(|options| {
            Shared::with_options(options, Octets { least }, RandomState::new(), DefaultLifecycle::default())
        });
        Cache { entries }
    }

    /// What is kept for this.
    #[inline]
    pub(super) fn get(&self, wanted: &CacheLookup<'_>) -> Option<Arc<Entry>> {
        self.entries.as_ref()?.get(wanted)
    }

    pub(super) fn insert(&self, key: CacheKey, entry: Arc<Entry>) {
        if let Some(entries) = &self.entries {
            entries.insert(key, entry);
        }
    }

    /// Entries and octets that are kept now.
    pub(super) fn size(&self) -> (usize, u64) {
        self.entries.as_ref().map_or((0, 0), |entries| {
            // Small entries weigh more than they are: that bounds their number.
            let octets = entries.iter().map(|(key, entry)| (SLOT + key.0.len() + entry.size()) as u64).sum();
            (entries.len(), octets)
        })
    }
}
