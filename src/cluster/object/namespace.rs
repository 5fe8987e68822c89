//! `v1` Namespace.

use serde::Deserialize;

use super::annotations::visible_to;
use super::meta::Meta;
use super::{Object, ParseOptions, label};
use crate::zone::facts::{Change, Key, NamespaceFact};

/// `v1` Namespace.
#[derive(Debug, Deserialize)]
pub struct NamespaceObject {
    /// See [`Meta`].
    #[serde(default)]
    pub metadata: Option<Meta>,
}

impl Object for NamespaceObject {
    const KIND: &'static str = "Namespace";
    type Id = Key;

    fn id(meta: &Meta) -> Option<Key> {
        Some(Key::new(meta.namespace(), meta.name()?))
    }

    fn metadata(&self) -> Option<&Meta> {
        self.metadata.as_ref()
    }

    fn change(&self, meta: &Meta, _: ParseOptions, notes: &mut Vec<String>) -> Result<Change, String> {
        let name = label("name", meta.name().ok_or("the object has no name")?)?;
        let fact = NamespaceFact { visible_to: visible_to(meta.annotations.as_ref(), notes) };
        Ok(Change::Namespace(name, Some(fact)))
    }

    fn gone(key: Key) -> Change {
        Change::Namespace(key.name, None)
    }
}
