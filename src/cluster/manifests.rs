//! Facts from manifests: a file, a folder that is watched, or standard input.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;

use super::object::{self, Object, ParseOptions, Rejected};
use super::{Event, Events, Resource};
use crate::watched::Watched;
use crate::zone::facts::{Change, Key, NamespaceFact, PodId, ServiceType};
use crate::zone::{Cidr, address_of};

/// How long a save may take to settle: editors write, rename and touch in a row.
const SETTLE: Duration = Duration::from_millis(50);
/// A change that the kernel does not tell of, behind a symbolic link, is found this late.
const RESCAN: Duration = Duration::from_secs(10);

/// Why manifests cannot be read at all.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// The path itself.
    #[error("cannot read {path}: {source}; --manifests takes a file, a folder or - for standard input")]
    Unreadable {
        /// As given.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file that does not parse.
    #[error("{path}{}: {reason}", line.map(|line| format!(":{line}")).unwrap_or_default())]
    Syntax {
        /// The file.
        path: String,
        /// Line, counted from 1, where it is known.
        line: Option<u64>,
        /// What is wrong there.
        reason: String,
    },
}

/// Where manifests are, and how they are read.
#[derive(Clone, Debug)]
pub struct ManifestOptions {
    /// `--manifests`: a file, a folder or `-`.
    pub path: PathBuf,
    /// What is read of objects.
    pub parse_options: ParseOptions,
    /// `--service-cidr`: Services without a `clusterIP` get a made-up one from the first block of each family.
    pub service_cidrs: Vec<Cidr>,
}

/// One object of a manifest: a change, and the address families that a Service still wants addresses of.
#[derive(Clone)]
struct ParsedObject {
    change: Change,
    wants: (bool, bool),
}

/// Inode, time of the last change of contents or attributes, and length: what tells that a file is another one.
#[derive(Clone, PartialEq)]
struct Stamp(u64, i64, i64, u64);

struct File {
    stamp: Option<Stamp>,
    said: Vec<ParsedObject>,
    rejected: Vec<Rejected>,
    /// Why its present text says nothing: then it says what it said before.
    problem: Option<String>,
}

/// Kind and key of an object.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Identity {
    Namespace(Box<str>),
    Service(Key),
    Slice(Key),
    Pod(PodId),
}

/// Manifests that have been read.
pub struct Manifests {
    options: ManifestOptions,
    files: BTreeMap<PathBuf, File>,
    told: HashMap<Identity, Change>,
}

impl Manifests {
    /// Reads everything once.
    ///
    /// # Errors
    /// When the path cannot be read, or is a single file that does not parse. In a folder such a file is a problem that
    /// [`refresh`](Self::refresh) reports, and the others count.
    pub fn open(options: ManifestOptions) -> Result<(Manifests, Vec<Event>), ManifestError> {
        let mut manifests = Manifests { options, files: BTreeMap::new(), told: HashMap::new() };
        let problems = manifests.scan()?;
        if !manifests.is_folder() {
            if let Some(problem) = problems.into_iter().next() {
                return Err(problem);
            }
            let events = manifests.difference();
            return Ok((manifests, events));
        }
        let mut events = manifests.difference();
        events.push(manifests.trouble());
        Ok((manifests, events))
    }

    /// What is wrong with files now, all of it.
    fn trouble(&self) -> Event {
        let problems: Vec<&str> = self.files.values().filter_map(|file| file.problem.as_deref()).collect();
        Event::Health(Resource::Manifests, (!problems.is_empty()).then(|| problems.join("; ")))
    }

    fn is_folder(&self) -> bool {
        self.options.path.is_dir()
    }

    /// Follows the files for as long as somebody listens. Standard input is read once.
    pub async fn follow(mut self, events: Events) {
        if self.options.path == Path::new("-") {
            return events.closed().await;
        }
        let folder = match self.options.path.parent() {
            _ if self.is_folder() => self.options.path.clone(),
            Some(parent) if parent != Path::new("") => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let watched = Watched::new(&folder, "manifests");
        if let Err(error) = &watched {
            tracing::warn!(folder = %folder.display(), %error, "changes of manifests are seen late: the folder cannot be watched");
        }
        loop {
            // At once: a save between the first reading and the start of the watch would be told by nobody.
            let told = match self.scan() {
                Ok(_) => {
                    let mut told = self.difference();
                    told.push(self.trouble());
                    told.push(Event::Heard(Resource::Manifests));
                    told
                }
                Err(problem) => vec![Event::Health(Resource::Manifests, Some(problem.to_string()))],
            };
            for event in told {
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

    /// Reads what changed; returns what is newly wrong. A file that does not parse keeps what it said last.
    fn scan(&mut self) -> Result<Vec<ManifestError>, ManifestError> {
        let path = self.options.path.clone();
        if path == Path::new("-") {
            let text = std::io::read_to_string(std::io::stdin());
            let text = text.map_err(|source| ManifestError::Unreadable { path: "standard input".into(), source })?;
            let (said, rejected) = parse("standard input", &text, self.options.parse_options)?;
            self.files.insert(path, File { stamp: None, said, rejected, problem: None });
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
        let nothing = || File { stamp: None, said: Vec::new(), rejected: Vec::new(), problem: None };
        let file = self.files.entry(path.to_path_buf()).or_insert_with(nothing);
        file.stamp = stamp;
        file.problem = parsed.as_ref().err().map(ToString::to_string);
        (file.said, file.rejected) = parsed?;
        Ok(())
    }

    /// What differs from what was told before.
    fn difference(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut all: BTreeMap<Identity, ParsedObject> = BTreeMap::new();
        for file in self.files.values_mut() {
            events.extend(file.rejected.drain(..).map(Event::Rejected));
            for said in &file.said {
                all.insert(identity(&said.change), said.clone());
            }
        }
        let places: BTreeSet<Box<str>> = all.values().filter_map(|said| place(&said.change)).map(Box::from).collect();
        for place in places {
            let change = Change::Namespace(place, Some(NamespaceFact::default()));
            all.entry(identity(&change)).or_insert(ParsedObject { change, wants: (false, false) });
        }
        self.make_up_addresses(&mut all);
        let gone: Vec<Identity> = self.told.keys().filter(|id| !all.contains_key(id)).cloned().collect();
        for id in gone {
            self.told.remove(&id);
            events.push(Event::Change(absence(id)));
        }
        for (id, said) in all {
            if self.told.get(&id).is_none_or(|told| !same(told, &said.change)) {
                self.told.insert(id, said.change.clone());
                events.push(Event::Change(said.change));
            }
        }
        events
    }

    /// Services that nobody gave an address get one that depends on their name only, so that it stays from run to run.
    fn make_up_addresses(&self, all: &mut BTreeMap<Identity, ParsedObject>) {
        let mut taken: HashSet<IpAddr> = all.values().flat_map(|said| cluster_ips(&said.change).to_vec()).collect();
        for (id, said) in all {
            let (Identity::Service(key), Change::Service(_, Some(fact))) = (id, &mut said.change) else { continue };
            let ServiceType::Cluster(addresses) = &mut fact.reach else { continue };
            if !addresses.is_empty() {
                continue;
            }
            for (wanted, v4) in [(said.wants.0, true), (said.wants.1, false)] {
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

fn absence(id: Identity) -> Change {
    match id {
        Identity::Namespace(name) => Change::Namespace(name, None),
        Identity::Service(key) => Change::Service(key, None),
        Identity::Slice(key) => Change::Slice(key, None),
        Identity::Pod(pod) => Change::Pod(pod, None),
    }
}

/// The namespace that an object lives in.
fn place(change: &Change) -> Option<&str> {
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
        Change::Service(_, Some(fact)) => match &fact.reach {
            ServiceType::Cluster(addresses) => addresses,
            _ => &[],
        },
        _ => &[],
    }
}

fn free_address(block: &Cidr, key: &Key, taken: &HashSet<IpAddr>) -> Option<IpAddr> {
    // FNV-1a: the same on every machine and in every version, which the standard library's hashes are not.
    let text = key.to_string();
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, octet| (hash ^ u64::from(octet)).wrapping_mul(0x100_0000_01b3));
    let width = 128 - u32::from(block.prefix());
    let size = 1u128.checked_shl(width.min(32)).unwrap_or(1);
    // Neither the first address of the block nor the last.
    let usable = size.checked_sub(2).filter(|usable| *usable > 0)?;
    (0..usable.min(65_536))
        .map(|step| address_of(block.first() + 1 + (u128::from(hash) + step) % usable))
        .find(|address| !taken.contains(address))
}

/// Reads the documents of one file: YAML or JSON, `List` kinds included. Kinds that have no name are passed over.
fn parse(
    path: &str,
    text: &str,
    parse_options: ParseOptions,
) -> Result<(Vec<ParsedObject>, Vec<Rejected>), ManifestError> {
    let (mut said, mut rejected) = (Vec::new(), Vec::new());
    for document in documents(path, text)? {
        take(document, parse_options, &mut said, &mut rejected);
    }
    Ok((said, rejected))
}

/// Checks a manifest as a source would: for tools and fuzzers that have text and no file.
///
/// # Errors
/// When the text is neither YAML nor JSON.
pub fn read_text(text: &str) -> Result<(Vec<Change>, Vec<Rejected>), ManifestError> {
    let (said, rejected) = parse("text", text, ParseOptions::default())?;
    Ok((said.into_iter().map(|said| said.change).collect(), rejected))
}

fn documents(path: &str, text: &str) -> Result<Vec<Value>, ManifestError> {
    let syntax = |line: Option<u64>, reason: String| ManifestError::Syntax { path: path.to_owned(), line, reason };
    // JSON is read as such, because it is faster; `{kind: Service}` is YAML.
    let trimmed = text.trim_start();
    if trimmed.strip_prefix('{').is_some_and(|rest| rest.trim_start().starts_with('"')) {
        let values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        return values.collect::<Result<_, _>>().map_err(|error| syntax(Some(error.line() as u64), error.to_string()));
    }
    // The budget guards services that read strangers' YAML; `kubectl get -A -o yaml` of a big cluster exceeds it.
    let options = serde_saphyr::options! { budget: None, with_snippet: false };
    serde_saphyr::from_multiple_with_options::<Value>(text, options).map_err(|error| {
        let line = error.location().map(|location| location.line());
        let reason = error.without_snippet().to_string();
        syntax(line, reason.lines().next().unwrap_or_default().to_owned())
    })
}

fn take(document: Value, parse_options: ParseOptions, said: &mut Vec<ParsedObject>, rejected: &mut Vec<Rejected>) {
    let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    match kind.as_str() {
        "Service" => {
            read_one::<object::Service>(document, parse_options, rejected, said, |service| service.wants_addresses())
        }
        "EndpointSlice" => {
            read_one::<object::EndpointSlice>(document, parse_options, rejected, said, |_| (false, false))
        }
        "Namespace" => read_one::<object::Namespace>(document, parse_options, rejected, said, |_| (false, false)),
        "Pod" => read_one::<object::Pod>(document, parse_options, rejected, said, |_| (false, false)),
        list if list.ends_with("List") => {
            let Value::Object(mut list) = document else { return };
            if let Some(Value::Array(items)) = list.remove("items") {
                // Items of a typed list may leave out their own kind.
                let item_kind = kind.strip_suffix("List").filter(|kind| !kind.is_empty());
                for mut item in items {
                    if let (Value::Object(item), Some(kind)) = (&mut item, item_kind) {
                        item.entry("kind").or_insert_with(|| kind.into());
                    }
                    take(item, parse_options, said, rejected);
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
    said: &mut Vec<ParsedObject>,
    wants: impl Fn(&O) -> (bool, bool),
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
                said.push(ParsedObject { change, wants: wants(&object) });
            }
            Err(error) => rejected.push(error),
        },
    }
}
