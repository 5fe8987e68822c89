//! Facts from manifests: a file, a watched folder, or standard input.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

use super::object::{self, Object, ParseOptions, Rejected};
use super::{Event, Events, Resource};
use crate::watched::FolderWatch;
use crate::zone::facts::{Change, Key, NamespaceFact, PodId, ServiceType};
use crate::zone::{Cidr, address_of};

/// Delay between a change and the scan: editors write, rename and touch a file in quick succession.
const SETTLE: Duration = Duration::from_millis(50);
/// Interval of scans without an event: inotify does not report changes behind a symbolic link.
const RESCAN: Duration = Duration::from_secs(10);

/// Why manifests cannot be read.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// The file or folder cannot be read.
    #[error("cannot read {path}: {source}; --manifests takes a file, a folder or - for standard input")]
    Unreadable {
        /// The path as given.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file that does not parse.
    #[error("{path}{}: {reason}", line.map(|line| format!(":{line}")).unwrap_or_default())]
    Syntax {
        /// The file.
        path: String,
        /// Line number, counted from 1, if known.
        line: Option<u64>,
        /// The parser's error.
        reason: String,
    },
}

/// Where to find manifests and how to parse them.
#[derive(Clone, Debug)]
pub struct ManifestOptions {
    /// `--manifests`: a file, a folder or `-`.
    pub path: PathBuf,
    /// How to parse objects.
    pub parse_options: ParseOptions,
    /// `--service-cidr`: a Service without a `clusterIP` gets a generated one from the first block of each family.
    pub service_cidrs: Vec<Cidr>,
}

/// One object of a manifest: its change, and the address families (IPv4, IPv6) that a Service requests.
#[derive(Clone)]
struct ParsedObject {
    change: Change,
    families: (bool, bool),
}

/// Inode, ctime (seconds and nanoseconds) and length of a file: a difference in any of them means a changed file.
#[derive(Clone, PartialEq)]
struct Stamp(u64, i64, i64, u64);

struct File {
    stamp: Option<Stamp>,
    declared: Vec<ParsedObject>,
    rejected: Vec<Rejected>,
    /// Why the current text does not parse. The objects of the last valid text remain in effect.
    problem: Option<String>,
}

/// The kind and key of an object.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Identity {
    Namespace(Box<str>),
    Service(Key),
    Slice(Key),
    Pod(PodId),
}

/// The manifests read so far, and the changes sent for them.
pub struct Manifests {
    options: ManifestOptions,
    files: BTreeMap<PathBuf, File>,
    sent: HashMap<Identity, Change>,
}

impl Manifests {
    /// Reads all manifests once; returns their events.
    ///
    /// # Errors
    /// When the path cannot be read, or is a single file that does not parse. In a folder, such a file becomes an
    /// [`Event::Health`], and the other files still apply.
    pub fn open(options: ManifestOptions) -> Result<(Manifests, Vec<Event>), ManifestError> {
        let mut manifests = Manifests { options, files: BTreeMap::new(), sent: HashMap::new() };
        let problems = manifests.scan()?;
        if !manifests.is_folder() {
            if let Some(problem) = problems.into_iter().next() {
                return Err(problem);
            }
            let events = manifests.difference();
            return Ok((manifests, events));
        }
        let mut events = manifests.difference();
        events.push(manifests.health());
        Ok((manifests, events))
    }

    /// Returns the event that reports the current errors of all files, or that there are none.
    fn health(&self) -> Event {
        let problems: Vec<&str> = self.files.values().filter_map(|file| file.problem.as_deref()).collect();
        Event::Health(Resource::Manifests, (!problems.is_empty()).then(|| problems.join("; ")))
    }

    fn is_folder(&self) -> bool {
        self.options.path.is_dir()
    }

    /// Follows the files until the receiver of events is dropped. Standard input is read only once.
    pub async fn follow(mut self, events: Events) {
        if self.options.path == Path::new("-") {
            return events.closed().await;
        }
        let folder = match self.options.path.parent() {
            _ if self.is_folder() => self.options.path.clone(),
            Some(parent) if parent != Path::new("") => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let watched = FolderWatch::new(&folder, "manifests");
        if let Err(error) = &watched {
            tracing::warn!(folder = %folder.display(), %error, "cannot watch manifests folder; polling instead");
        }
        loop {
            // Scan before the first event: a file may have changed between `open` and the start of the watch.
            let sent = match self.scan() {
                Ok(_) => {
                    let mut sent = self.difference();
                    sent.push(self.health());
                    sent.push(Event::Heard(Resource::Manifests));
                    sent
                }
                Err(problem) => vec![Event::Health(Resource::Manifests, Some(problem.to_string()))],
            };
            for event in sent {
                if events.send(event).await.is_err() {
                    return;
                }
            }
            let woken = async {
                match &watched {
                    Ok(watched) => watched.changed().await,
                    Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
                }
                tokio::time::sleep(SETTLE).await;
            };
            tokio::select! {
                () = woken => {}
                () = tokio::time::sleep(RESCAN) => {}
                () = events.closed() => return,
            }
        }
    }

    /// Reads changed files; returns their errors. After a syntax error, the file's last valid objects remain in effect.
    fn scan(&mut self) -> Result<Vec<ManifestError>, ManifestError> {
        let path = self.options.path.clone();
        if path == Path::new("-") {
            let text = std::io::read_to_string(std::io::stdin());
            let text = text.map_err(|source| ManifestError::Unreadable { path: "standard input".into(), source })?;
            let (declared, rejected) = parse("standard input", &text, self.options.parse_options)?;
            self.files.insert(path, File { stamp: None, declared, rejected, problem: None });
            return Ok(Vec::new());
        }
        let unreadable = |source| ManifestError::Unreadable { path: path.display().to_string(), source };
        let found = if self.is_folder() {
            let mut found = BTreeSet::new();
            for entry in std::fs::read_dir(&path).map_err(unreadable)? {
                let file = entry.map_err(unreadable)?.path();
                let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                let known = matches!(file.extension().and_then(|end| end.to_str()), Some("yaml" | "yml" | "json"));
                if known && !name.starts_with('.') && file.is_file() {
                    found.insert(file);
                }
            }
            found
        } else {
            BTreeSet::from([path.clone()])
        };
        self.files.retain(|file, _| found.contains(file));
        let mut problems = Vec::new();
        for file in found {
            if let Err(problem) = self.read(&file) {
                problems.push(problem);
            }
        }
        Ok(problems)
    }

    fn read(&mut self, path: &Path) -> Result<(), ManifestError> {
        let name = path.display().to_string();
        let unreadable = |source| ManifestError::Unreadable { path: name.clone(), source };
        let metadata = std::fs::metadata(path).map_err(unreadable)?;
        let stamp = Some(Stamp(metadata.ino(), metadata.ctime(), metadata.ctime_nsec(), metadata.len()));
        if self.files.get(path).is_some_and(|file| file.stamp == stamp) {
            return Ok(());
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let parsed = parse(&name, &text, self.options.parse_options);
        let nothing = || File { stamp: None, declared: Vec::new(), rejected: Vec::new(), problem: None };
        let file = self.files.entry(path.to_path_buf()).or_insert_with(nothing);
        file.stamp = stamp;
        file.problem = parsed.as_ref().err().map(ToString::to_string);
        (file.declared, file.rejected) = parsed?;
        Ok(())
    }

    /// Returns the changes since the last call, and the objects rejected since then.
    fn difference(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut all: BTreeMap<Identity, ParsedObject> = BTreeMap::new();
        for file in self.files.values_mut() {
            events.extend(file.rejected.drain(..).map(Event::Rejected));
            for declared in &file.declared {
                all.insert(identity(&declared.change), declared.clone());
            }
        }
        let namespaces: BTreeSet<Box<str>> =
            all.values().filter_map(|declared| namespace(&declared.change)).map(Box::from).collect();
        for namespace in namespaces {
            let change = Change::Namespace(namespace, Some(NamespaceFact::default()));
            all.entry(identity(&change)).or_insert(ParsedObject { change, families: (false, false) });
        }
        self.generate_addresses(&mut all);
        let gone: Vec<Identity> = self.sent.keys().filter(|id| !all.contains_key(id)).cloned().collect();
        for id in gone {
            self.sent.remove(&id);
            events.push(Event::Change(removal(id)));
        }
        for (id, declared) in all {
            if self.sent.get(&id).is_none_or(|sent| !same(sent, &declared.change)) {
                self.sent.insert(id, declared.change.clone());
                events.push(Event::Change(declared.change));
            }
        }
        events
    }

    /// Generates addresses for Services that have none. They derive from the Service's name, so they survive a restart.
    fn generate_addresses(&self, all: &mut BTreeMap<Identity, ParsedObject>) {
        let mut taken: HashSet<IpAddr> =
            all.values().flat_map(|declared| cluster_ips(&declared.change).to_vec()).collect();
        for (id, declared) in all {
            let (Identity::Service(key), Change::Service(_, Some(fact))) = (id, &mut declared.change) else { continue };
            let ServiceType::Cluster(addresses) = &mut fact.service_type else { continue };
            if !addresses.is_empty() {
                continue;
            }
            for (wanted, v4) in [(declared.families.0, true), (declared.families.1, false)] {
                let block = self.options.service_cidrs.iter().find(|block| address_of(block.first()).is_ipv4() == v4);
                if let Some(address) = block.filter(|_| wanted).and_then(|block| free_address(block, key, &taken)) {
                    taken.insert(address);
                    addresses.push(address);
                }
            }
        }
    }
}

fn identity(change: &Change) -> Identity {
    match change {
        Change::Namespace(name, _) => Identity::Namespace(name.clone()),
        Change::Service(key, _) => Identity::Service(key.clone()),
        Change::Slice(key, _) => Identity::Slice(key.clone()),
        Change::Pod(pod, _) => Identity::Pod(*pod),
    }
}

fn removal(id: Identity) -> Change {
    match id {
        Identity::Namespace(name) => Change::Namespace(name, None),
        Identity::Service(key) => Change::Service(key, None),
        Identity::Slice(key) => Change::Slice(key, None),
        Identity::Pod(pod) => Change::Pod(pod, None),
    }
}

/// The namespace of an object; `None` for a Namespace.
fn namespace(change: &Change) -> Option<&str> {
    match change {
        Change::Namespace(..) => None,
        Change::Service(key, _) | Change::Slice(key, _) => Some(&key.namespace),
        Change::Pod(_, fact) => fact.as_ref().map(|fact| &*fact.namespace),
    }
}

fn same(a: &Change, b: &Change) -> bool {
    match (a, b) {
        (Change::Service(_, a), Change::Service(_, b)) => a == b,
        (Change::Slice(_, a), Change::Slice(_, b)) => a == b,
        (Change::Namespace(_, a), Change::Namespace(_, b)) => a == b,
        (Change::Pod(_, a), Change::Pod(_, b)) => a == b,
        _ => false,
    }
}

fn cluster_ips(change: &Change) -> &[IpAddr] {
    match change {
        Change::Service(_, Some(fact)) => match &fact.service_type {
            ServiceType::Cluster(addresses) => addresses,
            _ => &[],
        },
        _ => &[],
    }
}

fn free_address(block: &Cidr, key: &Key, taken: &HashSet<IpAddr>) -> Option<IpAddr> {
    // FNV-1a is stable across machines and versions; the standard library's hashes are not.
    let text = key.to_string();
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, octet| (hash ^ u64::from(octet)).wrapping_mul(0x100_0000_01b3));
    let width = 128 - u32::from(block.prefix());
    let size = 1u128.checked_shl(width.min(32)).unwrap_or(1);
    // Skip the first and the last address of the block.
    let usable = size.checked_sub(2).filter(|usable| *usable > 0)?;
    (0..usable.min(65_536))
        .map(|step| address_of(block.first() + 1 + (u128::from(hash) + step) % usable))
        .find(|address| !taken.contains(address))
}

/// Parses the documents of one file: YAML or JSON, including `List` kinds. Kinds without DNS names are ignored.
fn parse(
    path: &str,
    text: &str,
    parse_options: ParseOptions,
) -> Result<(Vec<ParsedObject>, Vec<Rejected>), ManifestError> {
    let (mut declared, mut rejected) = (Vec::new(), Vec::new());
    for document in documents(path, text)? {
        take(document, parse_options, &mut declared, &mut rejected);
    }
    Ok((declared, rejected))
}

/// Parses a manifest from text, for tests and fuzzers.
///
/// # Errors
/// When the text is neither YAML nor JSON.
pub fn read_text(text: &str) -> Result<(Vec<Change>, Vec<Rejected>), ManifestError> {
    let (declared, rejected) = parse("text", text, ParseOptions::default())?;
    Ok((declared.into_iter().map(|declared| declared.change).collect(), rejected))
}

fn documents(path: &str, text: &str) -> Result<Vec<Value>, ManifestError> {
    let syntax = |line: Option<u64>, reason: String| ManifestError::Syntax { path: path.to_owned(), line, reason };
    // JSON is also YAML, but its own parser is faster. The quote after the brace rules out YAML such as
    // `{kind: Service}`.
    let trimmed = text.trim_start();
    if trimmed.strip_prefix('{').is_some_and(|rest| rest.trim_start().starts_with('"')) {
        let values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        return values.collect::<Result<_, _>>().map_err(|error| syntax(Some(error.line() as u64), error.to_string()));
    }
    // The budget protects against untrusted YAML. Manifests are trusted, and `kubectl get -A -o yaml` of a large
    // cluster exceeds it.
    let options = serde_saphyr::options! { budget: None, with_snippet: false };
    serde_saphyr::from_multiple_with_options::<Value>(text, options).map_err(|error| {
        let line = error.location().map(|location| location.line());
        let reason = error.without_snippet().to_string();
        syntax(line, reason.lines().next().unwrap_or_default().to_owned())
    })
}

fn take(document: Value, parse_options: ParseOptions, declared: &mut Vec<ParsedObject>, rejected: &mut Vec<Rejected>) {
    let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    match kind.as_str() {
        "Service" => read_one::<object::ServiceObject>(document, parse_options, rejected, declared, |service| {
            service.requested_families()
        }),
        "EndpointSlice" => {
            read_one::<object::EndpointSliceObject>(document, parse_options, rejected, declared, |_| (false, false))
        }
        "Namespace" => {
            read_one::<object::NamespaceObject>(document, parse_options, rejected, declared, |_| (false, false))
        }
        "Pod" => read_one::<object::PodObject>(document, parse_options, rejected, declared, |_| (false, false)),
        list if list.ends_with("List") => {
            let Value::Object(mut list) = document else { return };
            if let Some(Value::Array(items)) = list.remove("items") {
                // Items of a typed list may omit their kind.
                let item_kind = kind.strip_suffix("List").filter(|kind| !kind.is_empty());
                for mut item in items {
                    if let (Value::Object(item), Some(kind)) = (&mut item, item_kind) {
                        item.entry("kind").or_insert_with(|| kind.into());
                    }
                    take(item, parse_options, declared, rejected);
                }
            }
        }
        _ => {}
    }
}

fn read_one<O: Object>(
    document: Value,
    parse_options: ParseOptions,
    rejected: &mut Vec<Rejected>,
    declared: &mut Vec<ParsedObject>,
    families: impl Fn(&O) -> (bool, bool),
) {
    let name = |key: &str| {
        document.get("metadata").and_then(|meta| meta.get(key)).and_then(Value::as_str).unwrap_or("?").to_owned()
    };
    let label = format!("{}/{}", name("namespace").replace('?', "default"), name("name"));
    match serde_json::from_value::<O>(document) {
        Err(error) => rejected.push(Rejected { kind: O::KIND, name: label, reason: error.to_string() }),
        Ok(object) => match object::read(&object, parse_options) {
            Ok((change, notes)) => {
                rejected.extend(notes);
                declared.push(ParsedObject { change, families: families(&object) });
            }
            Err(error) => rejected.push(error),
        },
    }
}
