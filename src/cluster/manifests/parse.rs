//! Parses the text of manifests, one object after another: of each, only the facts are retained.

use std::io::BufRead;
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::de::IoRead;
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

/// Parses the documents of a file: YAML or JSON, including `List` kinds. Kinds without DNS names are ignored.
///
/// # Errors
/// The first document that does not parse, or is not an object.
pub(super) fn parse(path: &str, input: &mut dyn BufRead, options: ParseOptions) -> Result<Parsed, ManifestError> {
    let mut parsed = Parsed::default();
    each_document(path, input, |_, document| document.read(Objects { options, parsed: &mut parsed }))?;
    Ok(parsed)
}

/// As [`parse`], and calls `each` for each document as it is written, with the line on which it begins.
///
/// # Errors
/// As for [`parse`].
pub(super) fn inspect(
    path: &str,
    input: &mut dyn BufRead,
    options: ParseOptions,
    each: &mut dyn FnMut(u64, &Value),
) -> Result<Parsed, ManifestError> {
    let mut parsed = Parsed::default();
    each_document(path, input, |line, document| {
        let value: Value = document.read(PhantomData::<Value>)?;
        each(line, &value);
        let objects = Objects { options, parsed: &mut parsed };
        objects.deserialize(&value).map_err(|error| Problem { line: Some(1), reason: error.to_string() })
    })?;
    Ok(parsed)
}

/// One document of a file.
enum Document<'a, 'i> {
    Json(&'a mut serde_json::Deserializer<IoRead<&'i mut dyn BufRead>>),
    Yaml(&'a str),
}

impl Document<'_, '_> {
    /// Deserializes the document.
    fn read<T, S: for<'de> DeserializeSeed<'de, Value = T>>(self, seed: S) -> Result<T, Problem> {
        match self {
            Document::Json(json) => seed.deserialize(json).map_err(|error| {
                let text = error.to_string();
                let reason = text.split(" at line ").next().unwrap_or_default().to_owned();
                Problem { line: Some(error.line() as u64), reason }
            }),
            Document::Yaml(text) => {
                let read = |yaml: serde_saphyr::Deserializer<'_, '_>| seed.deserialize(yaml);
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
struct Problem {
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

/// Calls `take` for each document of a file, with the line on which it begins. Only one document of YAML is in memory at
/// a time, and of JSON less.
///
/// # Errors
/// The first error of `take`, with its line in the file.
fn each_document(
    path: &str,
    input: &mut dyn BufRead,
    mut take: impl FnMut(u64, Document<'_, '_>) -> Result<(), Problem>,
) -> Result<(), ManifestError> {
    let failed = |before: u64, problem: Problem| ManifestError::Syntax {
        path: path.to_owned(),
        line: problem.line.map(|line| before + line),
        reason: problem.reason,
    };
    let unreadable = |source| ManifestError::Unreadable { path: path.to_owned(), source };
    if input.fill_buf().map_err(unreadable)?.starts_with(BYTE_ORDER_MARK) {
        input.consume(BYTE_ORDER_MARK.len());
    }
    if is_json(input.fill_buf().map_err(unreadable)?) {
        let mut json = serde_json::Deserializer::from_reader(input);
        while json.end().is_err() {
            take(1, Document::Json(&mut json)).map_err(|problem| failed(0, problem))?;
        }
        return Ok(());
    }
    let mut documents = Documents { input, first: 1, next: 1, marker: String::new() };
    while let Some((first, text)) = documents.next_document().map_err(|error| match error {
        Ok(source) => unreadable(source),
        Err(problem) => failed(0, problem),
    })? {
        let before = text.lines().take_while(|line| !has_contents(line)).count() as u64;
        take(first + before, Document::Yaml(&text)).map_err(|problem| failed(first - 1, problem))?;
    }
    Ok(())
}

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// JSON is also YAML, but its own parser is faster. The quote after the brace rules out YAML such as `{kind: Service}`.
fn is_json(start: &[u8]) -> bool {
    let start = start.trim_ascii_start();
    start.strip_prefix(b"{").is_some_and(|rest| rest.trim_ascii_start().starts_with(b"\""))
}

/// Splits YAML at its document markers, each of which is part of the document that it begins (YAML 1.2 section 9.1.4:
/// a line that begins with `---` is always one).
struct Documents<'i> {
    input: &'i mut dyn BufRead,
    /// Line on which the next document begins, and the next line that is read.
    first: u64,
    next: u64,
    /// The marker that the next document begins with, if it has been read.
    marker: String,
}

impl Documents<'_> {
    /// Returns the next document with contents, and the line that it begins on.
    fn next_document(&mut self) -> Result<Option<(u64, String)>, Result<std::io::Error, Problem>> {
        let (mut text, mut is_full) = (std::mem::take(&mut self.marker), false);
        is_full |= has_contents(&text);
        loop {
            let mut line = Vec::new();
            if self.input.read_until(b'\n', &mut line).map_err(Ok)? == 0 {
                let first = std::mem::replace(&mut self.first, self.next);
                return Ok(is_full.then_some((first, text)));
            }
            let line = String::from_utf8(line).map_err(|error| {
                let at = error.utf8_error().valid_up_to();
                let odd = error.as_bytes().get(at).copied().unwrap_or_default();
                Err(Problem { line: Some(self.next), reason: format!("not text in UTF-8 (octet 0x{odd:02x})") })
            })?;
            let number = self.next;
            self.next += 1;
            if !is_marker(&line) || text.is_empty() && number == self.first {
                is_full |= has_contents(&line);
                text += &line;
                continue;
            }
            let first = std::mem::replace(&mut self.first, number);
            if is_full {
                self.marker = line;
                return Ok(Some((first, text)));
            }
            is_full = has_contents(&line);
            text = line;
        }
    }
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
            let mut input = text.as_bytes();
            let mut documents = Documents { input: &mut input, first: 1, next: 1, marker: String::new() };
            let mut found = Vec::new();
            while let Some(document) = documents.next_document().unwrap_or_else(|_| panic!("{case}")) {
                found.push(document);
            }
            let expected: Vec<(u64, String)> =
                expected.into_iter().map(|(line, text)| (line, text.to_owned())).collect();
            assert_eq!(found, expected, "{case}");
        }
    }
}
