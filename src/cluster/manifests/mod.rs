//! Facts from manifests: a file, a watched folder, or standard input.

mod files;
mod parse;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use thiserror::Error;

use self::files::{Found, Stamp};
use self::parse::Parsed;
use super::object::{ParseOptions, Rejected};
use super::{Event, Events, Resource};
use crate::watched::FolderWatch;
use crate::zone::facts::{Change, Key, NamespaceFact, PodId, ServiceType};
use crate::zone::{Cidr, address_of};

/// Delay between a change and the scan: editors write, rename and touch a file in quick succession.
const SETTLE: Duration = Duration::from_millis(50);
/// Interval of scans without an event: inotify reports no changes of a network file system.
const RESCAN: Duration = Duration::from_secs(10);
/// How long a file that is missing, empty or shorter keeps its objects: whoever replaces files may first remove them.
const GRACE: Duration = Duration::from_millis(250);
/// Maximum number of files whose errors are reported at a time.
const MAX_REPORTED: usize = 8;

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
    /// A folder with too many files.
    #[error("{path} has too many files or folders; name a smaller folder")]
    TooMany {
        /// The folder.
        path: String,
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

/// One object of a manifest.
struct ParsedObject {
    change: Change,
    /// The address families (IPv4, IPv6) that a Service requests.
    families: (bool, bool),
    /// Whether its addresses were generated.
    is_generated: bool,
    /// Whether this declaration has been sent, and counts.
    is_sent: bool,
}

#[derive(Default)]
struct File {
    stamp: Option<Stamp>,
    objects: Vec<ParsedObject>,
    rejected: Vec<Rejected>,
    /// Why the current text does not parse. The objects of the last valid text remain in effect.
    problem: Option<String>,
    /// Since when the file has been missing, empty or shorter than the text that is in effect.
    losing: Option<Instant>,
}

/// The kind and key of an object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Identity<'c> {
    Namespace(&'c str),
    Service(&'c Key),
    Slice(&'c Key),
    Pod(PodId),
}

/// The manifests read so far, and the changes sent for them.
pub struct Manifests {
    options: ManifestOptions,
    files: BTreeMap<PathBuf, File>,
    /// Objects of files that have been replaced or removed since the last events.
    gone: Vec<Change>,
    /// Namespaces that objects have but no file declares.
    implied: BTreeSet<Box<str>>,
    /// Objects that several files declare, as reported.
    repeated: BTreeSet<String>,
}

impl Manifests {
    fn new(options: ManifestOptions) -> Manifests {
        Manifests {
            options,
            files: BTreeMap::new(),
            gone: Vec::new(),
            implied: BTreeSet::new(),
            repeated: BTreeSet::new(),
        }
    }

    /// Reads all manifests once; returns their events.
    ///
    /// # Errors
    /// When the path cannot be read, or is a single file that does not parse. In a folder, such a file becomes an
    /// [`Event::Health`], and the other files still apply.
    pub fn open(options: ManifestOptions) -> Result<(Manifests, Vec<Event>), ManifestError> {
        let mut manifests = Manifests::new(options);
        let path = manifests.options.path.clone();
        if files::is_stream(&path) || path.is_file() {
            // The stamp is older than the text, so that no change in between is missed.
            let stamp = files::stamp(&path).ok();
            let file = File { stamp, ..manifests.load(&path)? };
            manifests.files.insert(path, file);
            return Ok(manifests.events()).map(|events| (manifests, events));
        }
        let found = files::find(&path)?;
        manifests.scan(&found);
        let mut events = manifests.events();
        events.push(manifests.health(&found));
        Ok((manifests, events))
    }

    /// Reads all manifests once, and shows each object as it is written, with its place (`web.yaml:12`). Returns the
    /// events of everything that can be read, and why the rest cannot.
    pub fn inspect(options: ManifestOptions, each: &mut dyn FnMut(&str, &Value)) -> (Vec<Event>, Vec<ManifestError>) {
        let mut manifests = Manifests::new(options);
        let path = manifests.options.path.clone();
        let found = match files::is_stream(&path) {
            true => Ok(Found { files: BTreeSet::from([path]), ..Found::default() }),
            false => files::find(&path),
        };
        let Found { files, mut problems, .. } = match found {
            Ok(found) => found,
            Err(problem) => return (Vec::new(), vec![problem]),
        };
        for path in files {
            let name = name_of(&path);
            let read = |each: &mut dyn FnMut(&str, &Value)| {
                let each = &mut |line: u64, object: &Value| each(&format!("{name}:{line}"), object);
                parse::inspect(&name, &mut *files::open(&path)?, manifests.options.parse_options, each)
            };
            match read(each) {
                Ok(Parsed { objects, rejected }) => {
                    manifests.files.insert(path, File { objects, rejected, ..File::default() });
                }
                Err(problem) => problems.push(problem),
            }
        }
        (manifests.events(), problems)
    }

    /// Returns the event that reports the current errors of all files, or that there are none.
    fn health(&self, found: &Found) -> Event {
        let folders = found.problems.iter().map(ToString::to_string);
        let files = self.files.values().filter_map(|file| file.problem.clone());
        let mut problems: Vec<String> = folders.chain(files).collect();
        if let Some(more) = problems.len().checked_sub(MAX_REPORTED).filter(|more| *more > 0) {
            problems.truncate(MAX_REPORTED);
            problems.push(format!("and {more} more; `callsign doctor` lists them"));
        }
        Event::Health(Resource::Manifests, (!problems.is_empty()).then(|| problems.join("; ")))
    }

    /// Follows the files until the receiver of events is dropped. Streams are read only once.
    pub async fn follow(mut self, events: Events) {
        if files::is_stream(&self.options.path) {
            return events.closed().await;
        }
        let watched = FolderWatch::new("manifests");
        if let Err(error) = &watched {
            tracing::warn!(%error, "cannot watch manifests; polling instead");
        }
        let mut is_watched = watched.is_ok();
        loop {
            // Scan before the first event: a file may have changed between `open` and the start of the watch. Reading
            // may take long, and must not delay probes.
            let watch = watched.as_ref().ok().cloned();
            let scanned = tokio::task::spawn_blocking(move || {
                let path = &self.options.path;
                let (found, now_watched) = match watch {
                    Some(watch) => files::find_and_watch(path, &watch),
                    None => (files::find(path), false),
                };
                let mut is_waiting = false;
                let sent = match &found {
                    Ok(found) => {
                        is_waiting = self.scan(found);
                        let mut sent = self.events();
                        sent.extend([self.health(found), Event::Heard(Resource::Manifests)]);
                        sent
                    }
                    // The last table stays: a folder that vanishes is not an empty cluster.
                    Err(problem) => vec![Event::Health(Resource::Manifests, Some(problem.to_string()))],
                };
                (self, sent, now_watched, is_waiting)
            });
            let Ok((manifests, sent, now_watched, is_waiting)) = scanned.await else { return };
            self = manifests;
            if is_watched && !now_watched {
                tracing::warn!("cannot watch all folders of manifests; polling as well");
            }
            is_watched = now_watched;
            for event in sent {
                if events.send(event).await.is_err() {
                    return;
                }
            }
            let settled = async {
                match &watched {
                    Ok(watched) => watched.settled(SETTLE).await,
                    Err(_) => std::future::pending().await,
                }
            };
            let interval = match (is_waiting, is_watched) {
                (true, _) => GRACE,
                (false, true) => RESCAN,
                (false, false) => Duration::from_secs(1),
            };
            tokio::select! {
                () = settled => {}
                () = tokio::time::sleep(interval) => {}
                () = events.closed() => return,
            }
        }
    }

    /// Reads changed files. After an error, the file's last valid objects remain in effect. Returns whether files keep
    /// their objects only for now, so that another scan is due.
    fn scan(&mut self, found: &Found) -> bool {
        let mut is_waiting = false;
        let mut is_lost = |losing: &mut Option<Instant>| {
            let is_lost = losing.get_or_insert_with(Instant::now).elapsed() >= GRACE;
            is_waiting |= !is_lost;
            is_lost
        };
        let lost = self.files.iter_mut().filter(|(path, _)| !found.files.contains(*path));
        let lost: Vec<PathBuf> =
            lost.filter_map(|(path, file)| is_lost(&mut file.losing).then(|| path.clone())).collect();
        for path in lost {
            self.replace(path, None);
        }
        for path in &found.files {
            let known = self.files.entry(path.clone()).or_default();
            let stamp = match files::stamp(path) {
                Ok(stamp) if known.stamp == Some(stamp) => {
                    known.losing = None;
                    continue;
                }
                Ok(stamp) => Some(stamp),
                // It has vanished since the search, and the next one misses it.
                Err(_) => continue,
            };
            let is_shorter = known.stamp.zip(stamp).is_some_and(|(known, stamp)| stamp.len() < known.len());
            if is_shorter && !is_lost(&mut known.losing) {
                continue;
            }
            match self.load(path) {
                Ok(file) => self.replace(path.clone(), Some(File { stamp, ..file })),
                Err(problem) => {
                    let known = self.files.entry(path.clone()).or_default();
                    (known.stamp, known.losing) = (stamp, None);
                    known.problem = Some(problem.to_string());
                }
            }
        }
        is_waiting
    }

    fn load(&self, path: &Path) -> Result<File, ManifestError> {
        let input = &mut *files::open(path)?;
        let Parsed { objects, rejected } = parse::parse(&name_of(path), input, self.options.parse_options)?;
        Ok(File { objects: objects.into_boxed_slice().into_vec(), rejected, ..File::default() })
    }

    /// Returns the changes since the last call, and the objects rejected since then.
    fn events(&mut self) -> Vec<Event> {
        let mut events: Vec<Event> =
            self.files.values_mut().flat_map(|file| file.rejected.drain(..)).map(Event::Rejected).collect();
        self.generate_addresses();
        // Sorting is stable: of an object that is declared twice, the last declaration counts, as with kubectl.
        // An object of a file that has gone counts only until another file has it: the file may have been renamed.
        let mut all: Vec<(&Path, &mut ParsedObject)> = Vec::new();
        for (path, file) in &mut self.files {
            let path = if file.losing.is_some() { Path::new("") } else { path.as_path() };
            all.extend(file.objects.iter_mut().map(|object| (path, object)));
        }
        all.sort_by(|a, b| {
            let stays = |path: &Path| path != Path::new("");
            identity(&a.1.change).cmp(&identity(&b.1.change)).then(stays(a.0).cmp(&stays(b.0)))
        });
        let gone: BTreeMap<Identity<'_>, &Change> = self.gone.iter().map(|change| (identity(change), change)).collect();
        // What is removed comes first: a new object may have its address.
        let is_declared = |id: &Identity<'_>| all.binary_search_by(|other| identity(&other.1.change).cmp(id)).is_ok();
        let removed = gone.iter().filter(|(id, _)| !is_declared(id)).map(|(_, change)| removal(change));
        events.extend(removed.map(Event::Change));
        let mut repeated = BTreeSet::new();
        for same in all.chunk_by_mut(|a, b| identity(&a.1.change) == identity(&b.1.change)) {
            for at in 1..same.len() {
                let (first, second) = (same[at - 1].0, same[at].0);
                same[at - 1].1.is_sent = false;
                if matches!(same[at].1.change, Change::Namespace(..)) || first == Path::new("") {
                    continue;
                }
                let rejected = again(&same[at].1.change, first, second);
                if repeated.insert(rejected.to_string()) && !self.repeated.contains(&rejected.to_string()) {
                    events.push(Event::Rejected(rejected));
                }
            }
            let Some((_, object)) = same.last_mut().filter(|(_, object)| !object.is_sent) else { continue };
            object.is_sent = true;
            if gone.get(&identity(&object.change)).is_none_or(|gone| !self::same(gone, &object.change)) {
                events.push(Event::Change(object.change.clone()));
            }
        }
        let declared =
            |name: &str| all.binary_search_by(|other| identity(&other.1.change).cmp(&Identity::Namespace(name)));
        let stated: BTreeSet<&str> = all.iter().filter_map(|(_, object)| namespace(&object.change)).collect();
        let implied: BTreeSet<Box<str>> =
            stated.into_iter().filter(|name| declared(name).is_err()).map(Box::from).collect();
        let vanished = self.implied.difference(&implied).filter(|name| declared(name).is_err());
        events.extend(vanished.map(|name| Event::Change(Change::Namespace(name.clone(), None))));
        let appeared = implied.difference(&self.implied);
        let appeared = appeared.map(|name| Change::Namespace(name.clone(), Some(NamespaceFact::default())));
        events.extend(appeared.map(Event::Change));
        self.gone = Vec::new();
        (self.implied, self.repeated) = (implied, repeated);
        events
    }

    /// Replaces a file, or removes it if `file` is `None`, and records its old objects as deleted.
    fn replace(&mut self, path: PathBuf, file: Option<File>) {
        let before = match file {
            Some(file) => self.files.insert(path, file),
            None => self.files.remove(&path),
        };
        let sent = before.into_iter().flat_map(|file| file.objects).filter(|object| object.is_sent);
        self.gone.extend(sent.map(|object| object.change));
    }

    /// Generates addresses for Services that have none. They derive from the Service's name, so they survive a restart.
    fn generate_addresses(&mut self) {
        let blocks = &self.options.service_cidrs;
        let objects = || self.files.values().flat_map(|file| &file.objects);
        let mut taken: HashSet<IpAddr> = objects()
            .filter(|object| !object.is_generated)
            .flat_map(|object| cluster_ips(&object.change))
            .copied()
            .collect();
        let mut without: Vec<&mut ParsedObject> = self
            .files
            .values_mut()
            .flat_map(|file| &mut file.objects)
            .filter(|object| object.lacks_address())
            .collect();
        without.sort_by(|a, b| identity(&a.change).cmp(&identity(&b.change)));
        // A Service that is declared twice has one address.
        let mut last: Option<(Key, Vec<IpAddr>)> = None;
        for object in without {
            let Change::Service(key, Some(fact)) = &mut object.change else { continue };
            let same = last.take().filter(|(other, _)| other == key).map(|(_, addresses)| addresses);
            let is_new = same.is_none();
            let mut addresses = same.unwrap_or_default();
            for (wanted, v4) in [(object.families.0, true), (object.families.1, false)] {
                let block = blocks.iter().find(|block| address_of(block.first()).is_ipv4() == v4);
                if let Some(address) =
                    block.filter(|_| wanted && is_new).and_then(|block| free_address(block, key, &taken))
                {
                    taken.insert(address);
                    addresses.push(address);
                }
            }
            last = Some((key.clone(), addresses.clone()));
            if fact.service_type != ServiceType::Cluster(addresses.clone()) {
                Arc::make_mut(fact).service_type = ServiceType::Cluster(addresses);
                object.is_sent = false;
            }
            object.is_generated = true;
        }
    }
}

impl ParsedObject {
    /// Whether this is a Service that no one has given an address.
    fn lacks_address(&self) -> bool {
        match &self.change {
            Change::Service(_, Some(fact)) => match &fact.service_type {
                ServiceType::Cluster(addresses) => addresses.is_empty() || self.is_generated,
                _ => false,
            },
            _ => false,
        }
    }
}

/// Returns the name of a file for messages.
fn name_of(path: &Path) -> String {
    if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() }
}

/// Returns the complaint about an object that is declared twice.
fn again(change: &Change, first: &Path, second: &Path) -> Rejected {
    let (kind, name) = match change {
        Change::Service(key, _) => ("Service", key.to_string()),
        Change::Slice(key, _) => ("EndpointSlice", key.to_string()),
        Change::Namespace(name, _) => ("Namespace", name.to_string()),
        Change::Pod(_, fact) => ("Pod", fact.as_ref().map(|fact| format!("{}/?", fact.namespace)).unwrap_or_default()),
    };
    let reason = match first == second {
        true => format!("declared twice in {}; the second declaration counts", first.display()),
        false => format!("declared in {} and again in {}, which counts", first.display(), second.display()),
    };
    Rejected { kind, name, reason }
}

fn identity(change: &Change) -> Identity<'_> {
    match change {
        Change::Namespace(name, _) => Identity::Namespace(name),
        Change::Service(key, _) => Identity::Service(key),
        Change::Slice(key, _) => Identity::Slice(key),
        Change::Pod(pod, _) => Identity::Pod(*pod),
    }
}

fn removal(change: &Change) -> Change {
    match change {
        Change::Namespace(name, _) => Change::Namespace(name.clone(), None),
        Change::Service(key, _) => Change::Service(key.clone(), None),
        Change::Slice(key, _) => Change::Slice(key.clone(), None),
        Change::Pod(pod, _) => Change::Pod(*pod, None),
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

/// Parses a manifest from text, for tests and fuzzers.
///
/// # Errors
/// When the text is neither YAML nor JSON.
pub fn read_text(text: &str) -> Result<(Vec<Change>, Vec<Rejected>), ManifestError> {
    let parsed = parse::parse("text", &mut text.as_bytes(), ParseOptions::default())?;
    Ok((parsed.objects.into_iter().map(|object| object.change).collect(), parsed.rejected))
}
