//! Objects of the Kubernetes API, stripped while parsing: these types hold only the fields that answers need, and the
//! parser skips the rest. Before you add a field, multiply its cost by 100,000 objects.

mod annotations;
mod endpoint_slice;
mod meta;
mod namespace;
mod pod;
mod ports;
mod service;

use std::net::IpAddr;

use thiserror::Error;

use crate::wire::MAX_LABEL;
use crate::zone::facts::{Change, Key};

pub use annotations::{parse_aliases, parse_visible_to};
pub use endpoint_slice::EndpointSliceObject;
pub use meta::Meta;
pub use namespace::NamespaceObject;
pub use pod::PodObject;
pub use service::ServiceObject;

/// An invalid object, or an invalid part of one such as an annotation. Only that object or part is ignored.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Error)]
#[error("{kind} {name}: {reason}")]
pub struct Rejected {
    /// Kind of the object.
    pub kind: &'static str,
    /// `namespace/name`, or as much of it as the object has.
    pub name: String,
    /// The problem.
    pub reason: String,
}

/// Options for parsing objects.
#[derive(Clone, Copy, Debug, Default)]
pub struct ParseOptions {
    /// `--endpoint-pod-names`.
    pub endpoint_pod_names: bool,
    /// Whether to retain what only commands need: `callsign.dev/links` and the endpoints that are not ready.
    pub for_commands: bool,
}

// Bounds on what one object can hold. They are far above honest use; what is over them is left out, with one complaint.

/// Longest value of an annotation, in octets.
pub const MAX_ANNOTATION: usize = 4096;
/// Maximum number of entries in an annotation's list: aliases, or namespaces.
pub const MAX_ENTRIES: usize = 64;
/// Maximum number of ports of a Service or an EndpointSlice.
pub const MAX_PORTS: usize = 1000;
/// Maximum number of addresses in an EndpointSlice. The API admits 1,000 endpoints, nearly always with one address.
pub const MAX_ADDRESSES: usize = 5000;
/// Longest quotation from an object in a message, in characters.
const MAX_QUOTED: usize = 100;
/// Longest message about an object, in characters.
const MAX_REASON: usize = 400;

/// Returns the start of a text that an object's author wrote, for messages.
fn quoted(text: &str) -> String {
    shortened(text, MAX_QUOTED)
}

fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

impl Rejected {
    /// Joins the complaints about one object: the first one, and how many more there are.
    pub fn summary(complaints: Vec<Rejected>) -> Option<Rejected> {
        let more = complaints.len().saturating_sub(1);
        let mut first = complaints.into_iter().next()?;
        if more > 0 {
            first.reason += &format!(" (and {more} more; `callsign doctor` lists them)");
        }
        Some(first)
    }
}

/// A kind of object that facts are derived from.
pub trait Object: serde::de::DeserializeOwned + Send + Sync + 'static {
    /// The `kind`, as in manifests and messages.
    const KIND: &'static str;

    /// The identity of an object within its kind.
    type Id: Clone + Eq + std::hash::Hash + std::fmt::Display + Send + Sync;

    /// Returns the identity of the object; `None` if it has no name.
    fn id(meta: &Meta) -> Option<Self::Id>;

    /// The object's metadata.
    fn metadata(&self) -> Option<&Meta>;

    /// Returns the change that the object's presence implies; adds a note for each invalid part that is ignored.
    ///
    /// # Errors
    /// When the whole object is invalid.
    fn change(&self, meta: &Meta, parse_options: ParseOptions, notes: &mut Vec<String>) -> Result<Change, String>;

    /// Returns the change that the object's absence implies.
    fn gone(id: Self::Id) -> Change;
}

/// Converts an object to a change and a list of its invalid parts, which are ignored.
///
/// # Errors
/// When the whole object is invalid. The error names the object and the problem.
pub fn read<O: Object>(object: &O, parse_options: ParseOptions) -> Result<(Change, Vec<Rejected>), Rejected> {
    let rejected = |name: String, reason: String| Rejected {
        kind: O::KIND,
        name: shortened(&name, 3 * MAX_QUOTED),
        reason: shortened(&reason, MAX_REASON),
    };
    let Some(meta) = object.metadata() else {
        return Err(rejected("(no metadata)".to_owned(), "the object has no metadata".to_owned()));
    };
    let mut notes = Vec::new();
    match object.change(meta, parse_options, &mut notes) {
        Ok(change) => Ok((change, notes.into_iter().map(|reason| rejected(meta.label(), reason)).collect())),
        Err(reason) => Err(rejected(meta.label(), reason)),
    }
}

fn key_of(meta: &Meta) -> Result<Key, String> {
    let name = meta.name().ok_or("the object has no name")?;
    label("namespace", meta.namespace())?;
    Ok(Key::new(&meta.namespace().to_ascii_lowercase(), name))
}

/// Checks a DNS label (letters, digits, dashes and underscores) and returns it in lower case.
fn label(what: &str, text: &str) -> Result<Box<str>, String> {
    if text.is_empty() {
        return Err(format!("{what} is empty"));
    }
    if text.len() > MAX_LABEL {
        return Err(format!("{what} '{}' has {} octets; a label has at most {MAX_LABEL}", quoted(text), text.len()));
    }
    match text.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_')) {
        Some(odd) => Err(format!("{what} '{text}' contains '{odd}'; a label has letters, digits, '-' and '_' only")),
        None => Ok(text.to_ascii_lowercase().into()),
    }
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("'{}' is not an IP address", quoted(text)))
}
