//! The annotations `callsign.dev/alias` and `callsign.dev/visible-to`. `service.rs` reads `default` and `links`.

use super::meta::{Annotations, Text};
use super::{MAX_ANNOTATION, MAX_ENTRIES, label};
use crate::zone::facts::VisibleTo;

/// Parses `callsign.dev/alias`, for example `db, primary`.
pub(super) fn aliases(text: Option<&Text>, notes: &mut Vec<String>) -> Vec<Box<str>> {
    let Some(text) = text else { return Vec::new() };
    let (aliases, problems) = parse_aliases(&text.0);
    notes.extend(problems);
    aliases
}

/// Parses the value of `callsign.dev/alias`. Returns the aliases, and a message for each entry that is ignored.
pub fn parse_aliases(text: &str) -> (Vec<Box<str>>, Vec<String>) {
    let entries: Vec<&str> = text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
    if entries.is_empty() {
        return (Vec::new(), vec!["callsign.dev/alias is ignored: it is empty".to_owned()]);
    }
    if entries.len() > MAX_ENTRIES {
        let error =
            format!("callsign.dev/alias is ignored: it has {} aliases; the limit is {MAX_ENTRIES}", entries.len());
        return (Vec::new(), vec![error]);
    }
    if text.len() > MAX_ANNOTATION {
        let error =
            format!("callsign.dev/alias is ignored: it has {} octets; the limit is {MAX_ANNOTATION}", text.len());
        return (Vec::new(), vec![error]);
    }
    let (mut aliases, mut problems) = (Vec::new(), Vec::new());
    for entry in entries {
        match label("alias", entry) {
            Ok(alias) if aliases.contains(&alias) => {}
            Ok(alias) => aliases.push(alias),
            Err(error) => problems.push(format!("callsign.dev/alias: {error}; this alias is ignored")),
        }
    }
    (aliases, problems)
}

/// Parses `callsign.dev/visible-to`. An invalid value hides the object from all other namespaces, because its
/// author wanted to hide it from some of them.
pub(super) fn visible_to(annotations: Option<&Annotations>, notes: &mut Vec<String>) -> Option<VisibleTo> {
    let text = &annotations?.visible_to.as_ref()?.0;
    match parse_visible_to(text) {
        Ok(visible_to) => Some(visible_to),
        Err(error) => {
            notes.push(format!(
                "callsign.dev/visible-to is invalid, so only its own namespace sees it: {error}; write '*', 'cluster', \
                 'namespace' or a list of namespaces"
            ));
            Some(VisibleTo::Namespaces(Vec::new()))
        }
    }
}

/// Parses the value of `callsign.dev/visible-to`.
///
/// # Errors
/// When it is empty, or an entry is not a namespace name. The error names the entry.
pub fn parse_visible_to(text: &str) -> Result<VisibleTo, String> {
    let entries = text.split(',').count();
    if text.len() > MAX_ANNOTATION || entries > MAX_ENTRIES {
        return Err(format!(
            "it has {entries} entries and {} octets; the limits are {MAX_ENTRIES} and {MAX_ANNOTATION}",
            text.len()
        ));
    }
    match text.trim() {
        "" => Err("it is empty".to_owned()),
        "*" => Ok(VisibleTo::Everyone),
        "cluster" => Ok(VisibleTo::Cluster),
        "namespace" => Ok(VisibleTo::Namespaces(Vec::new())),
        list => {
            let names = list.split(',').map(|name| label("namespace", name.trim()));
            Ok(VisibleTo::Namespaces(names.collect::<Result<_, _>>()?))
        }
    }
}
