//! The cache of upstream replies. The transports' threads read it without waiting for the forwarder, which is the only
//! writer.

use std::hash::{Hash, Hasher, RandomState};
use std::sync::Arc;

use quick_cache::sync::{Cache as Shared, DefaultLifecycle};
use quick_cache::{Equivalent, OptionsBuilder, Weighter};

use super::reply::Entry;

/// Query flags that select a different reply to the same name and type: whether to include DNSSEC records, whether to
/// validate them, and whether to recurse.
pub(super) mod key_flag {
    /// DO (RFC 3225).
    pub const DNSSEC_OK: u8 = 1;
    /// CD (RFC 4035 section 3.2.2).
    pub const CHECKING_DISABLED: u8 = 2;
    /// RD is clear: the upstream answers from its own data.
    pub const NOT_RECURSIVE: u8 = 4;
}

/// Bytes that follow the name in a key: the type and the flags.
const TAIL: usize = 3;

/// A name in wire format and lower case, then the type, then the flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CacheKey(pub(super) Box<[u8]>);

/// A borrowed key, for lookups that do not allocate.
pub(super) struct CacheLookup<'n> {
    pub(super) name: &'n [u8],
    pub(super) tail: [u8; TAIL],
}

impl<'n> CacheLookup<'n> {
    #[inline]
    pub(super) fn new(name: &'n [u8], qtype: u16, key_flags: u8) -> CacheLookup<'n> {
        let [high, low] = qtype.to_be_bytes();
        CacheLookup { name, tail: [high, low, key_flags] }
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

    pub(super) fn key_flags(&self) -> u8 {
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

/// Weighs entries by their size in bytes. The minimum weight limits their number to `--cache-entries`.
#[derive(Clone)]
struct Octets {
    least: u64,
}

/// Overhead of an entry in bytes: its slot, its share of the free slots, and the allocation of its key.
const SLOT_OVERHEAD: usize = 128;

impl Weighter<CacheKey, Arc<Entry>> for Octets {
    fn weight(&self, key: &CacheKey, entry: &Arc<Entry>) -> u64 {
        ((SLOT_OVERHEAD + key.0.len() + entry.size()) as u64).max(self.least)
    }
}

/// Bounds of the cache.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// `--cache-entries`; 0 disables the cache.
    pub entries: usize,
    /// `--cache-bytes`.
    pub octets: usize,
}

type Entries = Shared<CacheKey, Arc<Entry>, Octets, RandomState, DefaultLifecycle<CacheKey, Arc<Entry>>>;

/// The cache. A read holds one shard's shared lock only while it finds the entry and clones its `Arc`.
pub(super) struct Cache {
    entries: Option<Entries>,
}

impl Cache {
    pub(super) fn new(bounds: Bounds) -> Cache {
        let least = bounds.octets.div_ceil(bounds.entries.max(1)) as u64;
        // An entry must fit into one shard, so there are only a few large ones.
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

    /// Returns the cached entry, if there is one.
    #[inline]
    pub(super) fn get(&self, wanted: &CacheLookup<'_>) -> Option<Arc<Entry>> {
        self.entries.as_ref()?.get(wanted)
    }

    pub(super) fn insert(&self, key: CacheKey, entry: Arc<Entry>) {
        if let Some(entries) = &self.entries {
            entries.insert(key, entry);
        }
    }

    /// Number of cached entries and their total size in bytes.
    pub(super) fn size(&self) -> (usize, u64) {
        self.entries.as_ref().map_or((0, 0), |entries| {
            // The total weight would overstate the size: the minimum weight of a small entry exceeds its size.
            let octets = entries.iter().map(|(key, entry)| (SLOT_OVERHEAD + key.0.len() + entry.size()) as u64).sum();
            (entries.len(), octets)
        })
    }
}
