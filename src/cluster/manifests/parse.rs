//! Parses the text of manifests, one object after another: of each, only the facts are retained.

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{ManifestError, ParsedObject};
use crate::cluster::object::{self, Object, ParseOptions, Rejected};

/// Deepest nesting of a YAML document, as serde_json has for JSON.
const MAX_DEPTH: usize = 128;
/// How much of a document may be repeated by aliases, in parser events.
const MAX_REPEATED: usize = 100_000;
/// Fields of an object that facts are derived from. The others, such as the data of a ConfigMap, are skipped.
const FIELDS: [&str; 7] = ["kind", "metadata", "spec", "status", "addressType", "endpoints", "ports"];

/// The objects of a text.
#[derive(Default)]
pub(super) struct Parsed {
    pub(super) objects: Vec<ParsedObject>,
    /// Invalid objects, and invalid parts of objects.
    pub(super) rejected: Vec<Rejected>,
}

impl Parsed {
    fn append(&mut self, mut other: Parsed) {
        self.objects.append(&mut other.objects);
        self.rejected.append(&mut other.rejected);
    }
}

/// Parses the documents of a text: YAML or JSON, including `List` kinds. Kinds without DNS names are ignored.
///
/// # Errors
/// The first document that does not parse, or is not an object.
pub(super) fn parse(path: &str, text: &str, options: ParseOptions) -> Result<Parsed, ManifestError> {
    let mut parsed = Parsed::default();
    each_document(path, text, |_, document| document.read(Objects { options, parsed: &mut parsed }))?;
    Ok(parsed)
}

/// Calls `each` for each document of a text, as it is written, with the line on which it begins.
///
/// # Errors
/// As for [`parse`].
pub(super) fn inspect(path: &str, text: &str, each: &mut dyn FnMut(u64, Value)) -> Result<(), ManifestError> {
    each_document(path, text, |line, document| {
        let before = match &document {
            Document::Json(_) => 0,
            Document::Yaml(text) => text.lines().take_while(|line| !has_contents(line)).count() as u64,
        };
        each(line + before, document.read(std::marker::PhantomData::<Value>)?);
        Ok(())
    })
}

/// One document of a text.
pub(super) enum Document<'a, 't> {
    Json(&'a mut serde_json::Deserializer<serde_json::de::StrRead<'t>>),
    Yaml(&'t str),
}

impl<'t> Document<'_, 't> {
    /// Deserializes the document.
    pub(super) fn read<S: DeserializeSeed<'t>>(self, seed: S) -> Result<S::Value, Problem> {
        match self {
            Document::Json(json) => seed.deserialize(json).map_err(|error| {
                let text = error.to_string();
                let reason = text.split(" at line ").next().unwrap_or_default().to_owned();
                Problem { line: Some(error.line() as u64), reason }
            }),
            Document::Yaml(text) => {
                let read = |yaml: serde_saphyr::Deserializer<'t, '_>| seed.deserialize(yaml);
                serde_saphyr::with_deserializer_from_str_with_options(text, yaml_options(), read).map_err(|error| {
                    // An error about the document as a whole has no location.
                    let line = Some(error.location().map_or(1, |location| location.line()));
                    let text = error.without_snippet().to_string();
                    let reason = text.lines().next().unwrap_or_default().to_owned();
                    // The parser's advice is for programmers.
                    let reason = match reason.split_once(", set DuplicateKeyPolicy") {
                        Some((what, _)) => format!("{what}; is a '---' missing before the next object?"),
                        None => reason,
                    };
                    Problem { line, reason }
                })
            }
        }
    }
}

/// Why a document does not parse.
pub(super) struct Problem {
    /// Line within the document, counted from 1; for JSON, within the whole text.
    line: Option<u64>,
    reason: String,
}

/// Manifests may be as large as a cluster, and hold few anchors.
fn yaml_options() -> serde_saphyr::Options {
    let budget = serde_saphyr::budget! {
        max_events: usize::MAX,
        max_nodes: usize::MAX,
        max_total_scalar_bytes: usize::MAX,
        max_depth: MAX_DEPTH,
        enforce_alias_anchor_ratio: false,
    };
    let limits = serde_saphyr::alias_limits! { max_total_replayed_events: MAX_REPEATED };
    serde_saphyr::options! { budget: budget, alias_limits: limits, with_snippet: false }
}

/// Calls `take` for each document of a text, with the line on which it begins.
///
/// # Errors
/// The first error of `take`, with its line in the text.
pub(super) fn each_document<'t>(
    path: &str,
    text: &'t str,
    mut take: impl FnMut(u64, Document<'_, 't>) -> Result<(), Problem>,
) -> Result<(), ManifestError> {
    let failed = |before: u64, problem: Problem| ManifestError::Syntax {
        path: path.to_owned(),
        line: problem.line.map(|line| before + line),
        reason: problem.reason,
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // JSON is also YAML, but its own parser is faster. The quote after the brace rules out YAML such as
    // `{kind: Service}`.
    let trimmed = text.trim_start();
    if trimmed.strip_prefix('{').is_some_and(|rest| rest.trim_start().starts_with('"')) {
        let mut json = serde_json::Deserializer::from_str(text);
        while json.end().is_err() {
            take(1, Document::Json(&mut json)).map_err(|problem| failed(0, problem))?;
        }
        return Ok(());
    }
    for (line, document) in documents(text) {
        take(line, Document::Yaml(document)).map_err(|problem| failed(line - 1, problem))?;
    }
    Ok(())
}

/// Splits YAML at its document markers, each of which is part of the document that it begins (YAML 1.2 section 9.1.4:
/// a line that begins with `---` is always one). Returns the documents with contents, and the lines that they begin on.
fn documents(text: &str) -> impl Iterator<Item = (u64, &str)> {
    let mut rest = Some((1, text));
    let next = move || {
        let (first, text) = rest.take()?;
        let (mut at, mut line) = (0, first);
        for each in text.split_inclusive('\n') {
            if at > 0 && is_marker(each) {
                rest = Some((line, text.get(at..)?));
                return Some((first, text.get(..at)?));
            }
            at += each.len();
            line += 1;
        }
        Some((first, text))
    };
    std::iter::from_fn(next).filter(|(_, document)| document.lines().any(has_contents))
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Whether a line is more than a marker, a comment or a directive.
fn has_contents(line: &str) -> bool {
    let line = if is_marker(line) { line.trim_start_matches('-') } else { line }.trim();
    !line.is_empty() && !line.starts_with(['#', '%']) && line != "..."
}

/// Deserializes a document and adds its objects.
struct Objects<'a> {
    options: ParseOptions,
    parsed: &'a mut Parsed,
}

impl<'de> DeserializeSeed<'de> for Objects<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        let mut nameless = Vec::new();
        input.deserialize_any(ObjectVisitor { options: self.options, parsed: self.parsed, nameless: &mut nameless })
    }
}

/// Visits an object, or an item of a list. Items that state no kind are added to `nameless`.
struct ObjectVisitor<'a> {
    options: ParseOptions,
    parsed: &'a mut Parsed,
    nameless: &'a mut Vec<Map<String, Value>>,
}

impl<'de> Visitor<'de> for ObjectVisitor<'_> {
    type Value = ();

    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "an object with apiVersion, kind and metadata")
    }

    /// An empty document, or an empty item.
    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut fields = Map::new();
        let (mut items, mut nameless) = (Parsed::default(), Vec::new());
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            match &*key {
                "items" => {
                    map.next_value_seed(Items { options: self.options, parsed: &mut items, nameless: &mut nameless })?;
                }
                known if FIELDS.contains(&known) => {
                    if fields.contains_key(known) {
                        return Err(A::Error::custom(format!("'{known}' is there twice")));
                    }
                    let value = map.next_value()?;
                    fields.insert(known.to_owned(), value);
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        let Some(kind) = fields.get("kind").and_then(Value::as_str) else {
            self.nameless.push(fields);
            return Ok(());
        };
        if let Some(kind) = kind.strip_suffix("List") {
            self.parsed.append(items);
            // Items of a typed list may omit their kind.
            for item in nameless {
                take(kind, item, self.options, self.parsed);
            }
            return Ok(());
        }
        let kind = kind.to_owned();
        take(&kind, fields, self.options, self.parsed);
        Ok(())
    }
}

/// Visits the items of a list.
struct Items<'a> {
    options: ParseOptions,
    parsed: &'a mut Parsed,
    nameless: &'a mut Vec<Map<String, Value>>,
}

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "a list of objects")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        struct Item<'a>(ObjectVisitor<'a>);
        impl<'de> DeserializeSeed<'de> for Item<'_> {
            type Value = ();
            fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
                input.deserialize_any(self.0)
            }
        }
        let Items { options, parsed, nameless } = self;
        while seq.next_element_seed(Item(ObjectVisitor { options, parsed, nameless }))?.is_some() {}
        Ok(())
    }

    /// Some kinds that are not lists have a map called `items`.
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

fn take(kind: &str, fields: Map<String, Value>, options: ParseOptions, parsed: &mut Parsed) {
    match kind {
        "Service" => {
            add::<object::ServiceObject>(fields, options, parsed, object::ServiceObject::requested_families);
        }
        "EndpointSlice" => add::<object::EndpointSliceObject>(fields, options, parsed, |_| (false, false)),
        "Namespace" => add::<object::NamespaceObject>(fields, options, parsed, |_| (false, false)),
        "Pod" => add::<object::PodObject>(fields, options, parsed, |_| (false, false)),
        _ => {}
    }
}

fn add<O: Object>(
    fields: Map<String, Value>,
    options: ParseOptions,
    parsed: &mut Parsed,
    families: impl Fn(&O) -> (bool, bool),
) {
    let name = |key: &str, absent: &str| {
        fields.get("metadata").and_then(|meta| meta.get(key)).and_then(Value::as_str).unwrap_or(absent).to_owned()
    };
    let label = format!("{}/{}", name("namespace", "default"), name("name", "?"));
    match serde_json::from_value::<O>(Value::Object(fields)) {
        Err(error) => parsed.rejected.push(Rejected { kind: O::KIND, name: label, reason: error.to_string() }),
        Ok(object) => match object::read(&object, options) {
            Ok((change, notes)) => {
                parsed.rejected.extend(notes);
                parsed.objects.push(ParsedObject {
                    change,
                    families: families(&object),
                    is_generated: false,
                    is_sent: false,
                });
            }
            Err(error) => parsed.rejected.push(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_split_at_markers() {
        for (case, text, expected) in [
            ("one document", "a: 1\n", vec![(1, "a: 1\n")]),
            ("two", "a: 1\n---\nb: 2", vec![(1, "a: 1\n"), (2, "---\nb: 2")]),
            ("a marker first", "---\na: 1\n", vec![(1, "---\na: 1\n")]),
            ("comments and directives only", "# x\n%YAML 1.2\n---\na: 1\n---\n# y\n", vec![(3, "---\na: 1\n")]),
            ("contents after the marker", "--- {a: 1}\n--- {b: 2}\n", vec![(1, "--- {a: 1}\n"), (2, "--- {b: 2}\n")]),
            ("no marker: indented, or longer", "a: |\n  ---\n----\n", vec![(1, "a: |\n  ---\n----\n")]),
            ("carriage returns", "a: 1\r\n---\r\nb: 2\r\n", vec![(1, "a: 1\r\n"), (2, "---\r\nb: 2\r\n")]),
            ("nothing", "\n\n", vec![]),
        ] {
            assert_eq!(documents(text).collect::<Vec<_>>(), expected, "{case}");
        }
    }
}
