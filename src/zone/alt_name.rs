//! Alternative names of Services: aliases and marked databases.

use std::sync::Arc;

use super::names::ServiceName;
use super::persistent_map::Slot;
use super::row::Row;

/// An alternative name in a namespace, used if no Service has that name: aliases and marked databases.
#[derive(Debug)]
pub struct AltName {
    /// The name, with the namespace in which it is valid.
    pub name: ServiceName,
    /// Services that claim it as an alias; the first one gets it.
    pub aliases: Box<[Row]>,
    /// Services `name-*` marked `callsign.dev/default`, if the name is a kind of database.
    pub defaults: Box<[Row]>,
}

impl Slot for Arc<AltName> {
    #[inline(always)]
    fn hash(&self) -> u64 {
        self.name.hash()
    }
}
