//! Facts from the Kubernetes API: list and watch, one task and one connection for each kind.
//!
//! What to ask next is decided by a pure function, [`State::step`]; [`Watcher`] carries it out. Lists are streamed
//! where the server has that (`sendInitialEvents`), else read in pages, decided by what the server answers. A list is
//! compared with what is held object by object while it arrives: there are never two copies of the cluster.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::marker::PhantomData;
use std::time::Duration;

use http_body_util::BodyExt;
use kube::client::Body;
use serde::Deserialize;
use serde_json::value::RawValue;
use thiserror::Error;
use tokio::time::{Instant, timeout};

use super::object::{self, EndpointSlice, Meta, Namespace, Object, ParseOptions, Pod, Rejected, Service};
use super::{Event, Events, Resource, error_chain};

/// A watch is asked to end after this long, so that a connection that died silently is noticed soon.
const WATCH_SECONDS: u64 = 25;
/// Nothing at all for this long means that the connection is dead: the server ends a quiet watch before.
const SILENCE: Duration = Duration::from_secs(30);
/// A server that does not know streamed lists takes the request for a plain watch and never ends the list.
const STREAM_PATIENCE: Duration = Duration::from_secs(3);
/// First and longest wait between tries.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// Names and resource versions only.
const METADATA: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
/// Examples of what differs that are logged.
const EXAMPLES: usize = 3;
/// A watch keeps no more than this while nothing happens, in octets.
const KEPT: usize = 16 * 1024;
/// The longest wait while there is no API to burden: when it comes back, it is followed soon.
const AWAY: Duration = Duration::from_secs(3);
/// No object is larger: etcd takes 1.5 MB. Longer lines are no objects.
const MAX_LINE: usize = 16 << 20;

/// Why the API cannot be followed right now.
#[derive(Debug, Error)]
enum WatchError {
    #[error("cannot reach the API: {0}")]
    Unreachable(String),
    #[error("the API answers {code} {reason}")]
    ApiStatus { code: u16, reason: String, retry_after: Option<Duration> },
    #[error("the API sends what is no {0}: {1}")]
    Unreadable(&'static str, String),
    #[error("the API takes no watch from its own list: 410 again and again")]
    GoneAgain,
    #[error("the API was silent for {} seconds", .0.as_secs())]
    NoTrace(Duration),
}

/// What to ask for next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// A list as a stream, which goes on as a watch.
    Stream,
    /// A list in pages; `next` continues one.
    Page {
        /// The server's token.
        next: Option<String>,
    },
    /// Changes after a version.
    Watch {
        /// Resource version.
        version: String,
    },
}

/// What the server had to say to that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchOutcome {
    /// A page, and the token of the next.
    Paged {
        /// Token of the next page; none after the last.
        next: Option<String>,
        /// The version of the list.
        version: String,
    },
    /// The list is whole, or an event or bookmark arrived: what is held is this version.
    At(String),
    /// The watch ended as it should.
    Ended,
    /// The version or token is too old (410), or newer than anything the server has.
    Gone,
    /// The server has no streamed lists.
    NoStreams,
    /// Anything else.
    Failed,
}

impl State {
    /// The next state. `streams`: whether lists are asked for as streams.
    pub fn step(self, word: WatchOutcome, streams: bool) -> State {
        let list = || if streams { State::Stream } else { State::Page { next: None } };
        match (self, word) {
            (_, WatchOutcome::NoStreams) => State::Page { next: None },
            (_, WatchOutcome::Gone) => list(),
            (_, WatchOutcome::Paged { next: Some(next), .. }) => State::Page { next: Some(next) },
            (_, WatchOutcome::Paged { next: None, version }) => State::Watch { version },
            (_, WatchOutcome::At(version)) => State::Watch { version },
            // A stream that ends before its list does has told nothing whole.
            (State::Stream, WatchOutcome::Ended | WatchOutcome::Failed) => list(),
            // A page is asked for again with the same token; a watch goes on where it stood.
            (state, WatchOutcome::Ended | WatchOutcome::Failed) => state,
        }
    }
}

/// What is held of an object: enough to see whether it changed, and whether a list still has it. Octets without
/// alignment: there may be 150,000 of them.
struct KnownObject {
    /// A hash of the resource version: four octets tell two versions of one object apart well enough.
    version: Version,
    /// The list that had it last.
    list: u8,
}

type Version = [u8; 4];

/// Follows one kind.
pub struct Watcher<O: Object> {
    client: kube::Client,
    resource: Resource,
    path: &'static str,
    selector: Option<String>,
    page: u32,
    parse_options: ParseOptions,
    events: Events,
    held: HashMap<O::Id, KnownObject>,
    hasher: RandomState,
    list: u8,
    streams: bool,
    synced: bool,
    /// Time between comparisons of what is held with what the server has; zero: none.
    check: Duration,
    checked: Instant,
    /// What differed at the last comparison, with the version that was held: it may only have been on its way.
    suspects: HashMap<O::Id, Option<Version>>,
    kind: PhantomData<O>,
}

/// The far end of the channel is gone: the program ends.
struct Closed;

#[derive(Deserialize)]
struct List<'a> {
    #[serde(default)]
    metadata: Option<ListMeta>,
    #[serde(borrow, default)]
    items: Option<Vec<Option<&'a RawValue>>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct WatchEvent<'a, T> {
    #[serde(rename = "type")]
    kind: &'a str,
    object: T,
}

/// `v1` Status, as errors are told.
#[derive(Default, Deserialize)]
struct ApiStatus {
    code: Option<u16>,
    reason: Option<String>,
    message: Option<String>,
    details: Option<StatusDetails>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StatusDetails {
    retry_after_seconds: Option<u64>,
}

/// Which pods to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pods {
    /// None.
    Off,
    /// Those of one node.
    Node(String),
    /// All.
    All,
}

/// Starts following everything that answers are made of; returns the parts to wait for.
pub fn follow(
    client: &kube::Client,
    parse_options: ParseOptions,
    pods: &Pods,
    check: Duration,
    events: &Events,
) -> Vec<Resource> {
    let mut services =
        Watcher::<Service>::new(client, Resource::Services, "/api/v1/services", 500, parse_options, events);
    let path = "/apis/discovery.k8s.io/v1/endpointslices";
    // Slices are large: a smaller page bounds what a list holds in memory at a time.
    let mut slices = Watcher::<EndpointSlice>::new(client, Resource::EndpointSlices, path, 100, parse_options, events);
    let mut namespaces =
        Watcher::<Namespace>::new(client, Resource::Namespaces, "/api/v1/namespaces", 500, parse_options, events);
    services.check = check;
    tokio::spawn(services.run());
    slices.check = check;
    tokio::spawn(slices.run());
    namespaces.check = check;
    tokio::spawn(namespaces.run());
    let mut resources = vec![Resource::Services, Resource::EndpointSlices, Resource::Namespaces];
    if *pods != Pods::Off {
        let mut watcher = Watcher::<Pod>::new(client, Resource::Pods, "/api/v1/pods", 500, parse_options, events);
        watcher.check = check;
        if let Pods::Node(node) = pods {
            watcher.selector = Some(format!("spec.nodeName={node}"));
        }
        tokio::spawn(watcher.run());
        resources.push(Resource::Pods);
    }
    resources
}

impl<O: Object> Watcher<O> {
    fn new(
        client: &kube::Client,
        resource: Resource,
        path: &'static str,
        page: u32,
        parse_options: ParseOptions,
        events: &Events,
    ) -> Self {
        Watcher {
            client: client.clone(),
            resource,
            path,
            selector: None,
            page,
            parse_options,
            events: events.clone(),
            held: HashMap::new(),
            hasher: RandomState::new(),
            list: 0,
            streams: true,
            synced: false,
            check: Duration::ZERO,
            checked: Instant::now(),
            suspects: HashMap::new(),
            kind: PhantomData,
        }
    }

    /// Follows the kind until nobody listens any more.
    pub async fn run(mut self) {
        let mut state = State::Stream;
        let mut wait = BACKOFF.0;
        let mut gone = None::<Instant>;
        loop {
            if matches!(state, State::Stream | State::Page { next: None }) {
                self.begin_list();
            }
            let before = state.clone();
            let asked_at = Instant::now();
            let outcome = match self.ask(&mut state).await {
                Ok(outcome) => outcome,
                Err(Closed) => return,
            };
            // A watch that held for longer than we waited for it is a success, even if nothing happened meanwhile.
            let progressed = state != before || asked_at.elapsed() > wait;
            let (mut word, failure) = outcome;
            if failure.is_none() && matches!((&state, &word), (State::Watch { .. }, WatchOutcome::Ended)) {
                match self.compare(&state).await {
                    Ok(true) => word = WatchOutcome::Gone,
                    Ok(false) => {}
                    Err(Closed) => return,
                }
            }
            if word == WatchOutcome::NoStreams {
                self.streams = false;
            }
            // Being told to list again is part of the protocol; being told so again and again is trouble.
            let again =
                word == WatchOutcome::Gone && gone.replace(Instant::now()).is_some_and(|last| last.elapsed() < SILENCE);
            let failure = failure.or(again.then_some(WatchError::GoneAgain));
            let progressed = progressed && !again;
            state = state.step(word, self.streams);
            let trouble = failure.as_ref().map(WatchError::to_string);
            if progressed && failure.is_none() {
                wait = BACKOFF.0;
            }
            let Some(failure) = failure else {
                if self.say(Event::Health(self.resource, None)).await.is_err() {
                    return;
                }
                continue;
            };
            if self.say(Event::Health(self.resource, trouble)).await.is_err() {
                return;
            }
            let asked = match failure {
                WatchError::ApiStatus { retry_after: Some(asked), .. } => asked.min(BACKOFF.1),
                _ => Duration::ZERO,
            };
            let unreachable = matches!(failure, WatchError::Unreachable(_));
            if unreachable {
                wait = wait.min(AWAY);
            }
            tokio::select! {
                () = tokio::time::sleep(asked.max(self.jittered(wait))) => {}
                () = self.events.closed() => return,
            }
            let longest = if unreachable { AWAY } else { BACKOFF.1 };
            wait = if progressed { BACKOFF.0 } else { (wait * 2).min(longest) };
        }
    }

    /// Lists are told apart by a number that comes round: then all that is held is of list 0, and this is list 1.
    fn begin_list(&mut self) {
        self.list = self.list.checked_add(1).unwrap_or_else(|| {
            self.held.values_mut().for_each(|held| held.list = 0);
            1
        });
    }

    /// Half to all of a wait, so that servers that lost the API together do not come back together.
    fn jittered(&self, wait: Duration) -> Duration {
        let dice = self.hasher.hash_one(std::time::Instant::now()) % 1000;
        wait / 2 + wait.mul_f64(dice as f64 / 2000.0)
    }

    async fn say(&self, event: Event) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }

    /// Asks for what the state wants and takes in what comes. While events arrive, `state` moves along.
    async fn ask(&mut self, state: &mut State) -> Result<(WatchOutcome, Option<WatchError>), Closed> {
        let uri = self.uri(state);
        let request = http::Request::get(uri).header(http::header::ACCEPT, "application/json").body(Body::empty());
        let request = match request {
            Ok(request) => request,
            Err(error) => return Ok((WatchOutcome::Failed, Some(WatchError::Unreachable(error.to_string())))),
        };
        let response = match timeout(SILENCE, self.client.send(request)).await {
            Err(_) => return Ok((WatchOutcome::Failed, Some(WatchError::NoTrace(SILENCE)))),
            Ok(Err(error)) => return Ok((WatchOutcome::Failed, Some(WatchError::Unreachable(error_chain(&error))))),
            Ok(Ok(response)) => response,
        };
        if !response.status().is_success() {
            return Ok(self.refused(state, response).await);
        }
        let mut lines = LineReader::of(response.into_body());
        match state {
            State::Page { .. } => match lines.rest().await {
                Ok(page) => self.take_page(&page).await,
                Err(failure) => Ok((WatchOutcome::Failed, Some(failure))),
            },
            State::Stream | State::Watch { .. } => self.take_events(state, &mut lines).await,
        }
    }

    fn uri(&self, state: &State) -> String {
        let mut uri = format!("{}?", self.path);
        match state {
            State::Stream => {
                uri += "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
                uri += &format!("&timeoutSeconds={WATCH_SECONDS}");
            }
            State::Page { next } => {
                uri += &format!("limit={}", self.page);
                if let Some(next) = next {
                    uri += &format!("&continue={}", encoded(next));
                }
            }
            State::Watch { version } => {
                uri += &format!("watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}");
                uri += &format!("&resourceVersion={}", encoded(version));
            }
        }
        if let Some(selector) = &self.selector {
            uri += &format!("&fieldSelector={}", encoded(selector));
        }
        uri
    }

    /// Compares what is held with what the server has, when it is time; says whether only a list can heal it.
    ///
    /// A difference is believed if it is still there, unchanged, after another watch: what the server has and we do not
    /// may be on its way.
    async fn compare(&mut self, state: &State) -> Result<bool, Closed> {
        let State::Watch { version } = state else { return Ok(false) };
        let due = !self.check.is_zero() && self.checked.elapsed() >= self.check;
        if self.suspects.is_empty() && !due {
            return Ok(false);
        }
        let Some(server) = self.versions(version).await else { return Ok(false) };
        let mut differing: HashMap<O::Id, Option<Version>> = HashMap::new();
        for (key, version) in &server {
            let held = self.held.get(key).map(|held| held.version);
            if held != Some(*version) {
                differing.insert(key.clone(), held);
            }
        }
        for (key, held) in &self.held {
            if !server.contains_key(key) {
                differing.insert(key.clone(), Some(held.version));
            }
        }
        let suspects = std::mem::take(&mut self.suspects);
        let sure: Vec<&O::Id> =
            differing.iter().filter(|(key, held)| suspects.get(key) == Some(held)).map(|(key, _)| key).collect();
        let examples = sure.iter().take(EXAMPLES).map(ToString::to_string).collect();
        let wrong = sure.len();
        self.checked = Instant::now();
        if wrong == 0 {
            self.suspects = differing;
        } else {
            // The list that follows must not take an object for known by a version that was never read.
            self.held.values_mut().for_each(|held| held.version[0] ^= 1);
        }
        if self.suspects.is_empty() {
            self.say(Event::Compared(self.resource, wrong, examples)).await?;
        }
        Ok(wrong > 0)
    }

    /// Key and version of every object that the server has, from its watch cache, in pages. `None` if it does not say.
    async fn versions(&self, at_least: &str) -> Option<HashMap<O::Id, Version>> {
        let mut all = HashMap::new();
        let mut next: Option<String> = None;
        loop {
            let mut uri = format!("{}?limit={}", self.path, self.page);
            match &next {
                Some(next) => uri += &format!("&continue={}", encoded(next)),
                None => uri += &format!("&resourceVersion={}&resourceVersionMatch=NotOlderThan", encoded(at_least)),
            }
            if let Some(selector) = &self.selector {
                uri += &format!("&fieldSelector={}", encoded(selector));
            }
            let request = http::Request::get(uri).header(http::header::ACCEPT, METADATA).body(Body::empty()).ok()?;
            let response = timeout(SILENCE, self.client.send(request)).await.ok()?.ok()?;
            if !response.status().is_success() {
                return None;
            }
            let page = LineReader::of(response.into_body()).rest().await.ok()?;
            let list: List<'_> = serde_json::from_slice(&page).ok()?;
            for item in list.items.into_iter().flatten().flatten() {
                let meta = meta_of(item.get());
                if let Some(key) = O::id(&meta) {
                    all.insert(key, self.hash(&meta));
                }
            }
            next = list.metadata.and_then(|meta| meta.next).filter(|next| !next.is_empty());
            if next.is_none() {
                return Some(all);
            }
        }
    }

    async fn refused(&self, state: &State, response: http::Response<Body>) -> (WatchOutcome, Option<WatchError>) {
        let code = response.status().as_u16();
        let header = response.headers().get(http::header::RETRY_AFTER);
        let retry_after = header.and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_secs);
        let mut lines = LineReader::of(response.into_body());
        let body = lines.rest().await.unwrap_or_default();
        let status: ApiStatus = serde_json::from_slice(&body)
            .unwrap_or_else(|_| ApiStatus { message: Some(excerpt(&body)), ..ApiStatus::default() });
        let asked = status.details.as_ref().and_then(|details| details.retry_after_seconds).map(Duration::from_secs);
        let word = match (code, state) {
            (410, _) => WatchOutcome::Gone,
            (400 | 404 | 405 | 422, State::Stream) => WatchOutcome::NoStreams,
            _ if is_too_new(&status) => WatchOutcome::Gone,
            _ => WatchOutcome::Failed,
        };
        // Being told to list again is part of the protocol, as long as it leads somewhere.
        let expected = matches!(word, WatchOutcome::NoStreams)
            || (word == WatchOutcome::Gone && matches!(state, State::Watch { .. }));
        let reason = status.message.or(status.reason).unwrap_or_default();
        let failure =
            WatchError::ApiStatus { code, reason: reason.trim().to_owned(), retry_after: asked.or(retry_after) };
        (word, (!expected).then_some(failure))
    }

    async fn take_page(&mut self, page: &[u8]) -> Result<(WatchOutcome, Option<WatchError>), Closed> {
        let list: List<'_> = match serde_json::from_slice(page) {
            Ok(list) => list,
            Err(error) => return Ok((WatchOutcome::Failed, Some(WatchError::Unreadable("list", error.to_string())))),
        };
        let meta = list.metadata.unwrap_or_default();
        let Some(version) = meta.resource_version else {
            return Ok((
                WatchOutcome::Failed,
                Some(WatchError::Unreadable("list", "it has no resourceVersion".to_owned())),
            ));
        };
        for item in list.items.into_iter().flatten().flatten() {
            self.take_object(item.get(), true).await?;
        }
        let next = meta.next.filter(|next| !next.is_empty());
        if next.is_none() {
            self.list_is_whole().await?;
        }
        Ok((WatchOutcome::Paged { next, version }, None))
    }

    async fn take_events(
        &mut self,
        state: &mut State,
        lines: &mut LineReader,
    ) -> Result<(WatchOutcome, Option<WatchError>), Closed> {
        let opened = Instant::now();
        loop {
            let listing = *state == State::Stream;
            let patience = if listing { STREAM_PATIENCE } else { SILENCE };
            let line = match timeout(patience, lines.next()).await {
                Err(_) if listing => return Ok((WatchOutcome::NoStreams, None)),
                Err(_) => return Ok((WatchOutcome::Failed, Some(WatchError::NoTrace(SILENCE)))),
                Ok(Err(failure)) => return Ok((WatchOutcome::Failed, Some(failure))),
                Ok(Ok(None)) if listing => return Ok((WatchOutcome::NoStreams, None)),
                // A watch that ends at once, again and again, is no watch.
                Ok(Ok(None)) if opened.elapsed() < Duration::from_millis(100) => {
                    tokio::time::sleep(BACKOFF.0).await;
                    return Ok((WatchOutcome::Ended, None));
                }
                Ok(Ok(None)) => return Ok((WatchOutcome::Ended, None)),
                Ok(Ok(Some(line))) => line,
            };
            // Nearly every line is an object that is there: it is read in one pass.
            let version = match serde_json::from_slice::<WatchEvent<'_, O>>(&line) {
                Ok(WatchEvent { kind: "ADDED" | "MODIFIED", object }) => self.take(&object, listing).await?,
                _ => match self.take_odd(&line, state).await? {
                    Ok(version) => version,
                    Err(end) => return Ok(end),
                },
            };
            if let (State::Watch { .. }, Some(version)) = (&*state, version) {
                *state = std::mem::replace(state, State::Stream).step(WatchOutcome::At(version), self.streams);
            }
        }
    }

    /// Takes in a line that is no object that is there and can be read; `Err` is the end of the watch.
    async fn take_odd(
        &mut self,
        line: &[u8],
        state: &mut State,
    ) -> Result<Result<Option<String>, (WatchOutcome, Option<WatchError>)>, Closed> {
        let listing = *state == State::Stream;
        let event: WatchEvent<'_, &RawValue> = match serde_json::from_slice(line) {
            Ok(event) => event,
            Err(error) => {
                return Ok(Err((WatchOutcome::Failed, Some(WatchError::Unreadable("watch event", error.to_string())))));
            }
        };
        Ok(Ok(match event.kind {
            "ADDED" | "MODIFIED" => self.take_object(event.object.get(), listing).await?,
            "DELETED" => self.forget(event.object.get()).await?,
            "BOOKMARK" => {
                let meta = meta_of(event.object.get());
                if listing && meta.ends_initial_events() {
                    self.list_is_whole().await?;
                    *state = State::Watch { version: String::new() };
                }
                self.say(Event::Heard(self.resource)).await?;
                meta.resource_version
            }
            "ERROR" => return Ok(Err(self.error_event(event.object.get()))),
            _ => None,
        }))
    }

    fn error_event(&self, object: &str) -> (WatchOutcome, Option<WatchError>) {
        let status: ApiStatus = serde_json::from_str(object).unwrap_or_default();
        let code = status.code.unwrap_or(500);
        if code == 410 || is_too_new(&status) {
            return (WatchOutcome::Gone, None);
        }
        let retry_after = status.details.and_then(|details| details.retry_after_seconds).map(Duration::from_secs);
        let reason = status.message.or(status.reason).unwrap_or_else(|| excerpt(object.as_bytes()));
        (WatchOutcome::Failed, Some(WatchError::ApiStatus { code, reason, retry_after }))
    }

    /// Takes in one object; returns its version. What cannot be understood is left out alone.
    async fn take_object(&mut self, text: &str, listing: bool) -> Result<Option<String>, Closed> {
        let object: O = match serde_json::from_str(text) {
            Ok(object) => object,
            Err(error) => {
                let meta = meta_of(text);
                let rejected = Rejected { kind: O::KIND, name: meta.label(), reason: error.to_string() };
                self.say(Event::Rejected(rejected)).await?;
                // What it was before may be wrong now, but an object that is there is no reason to forget it.
                self.touch(&meta);
                return Ok(meta.resource_version);
            }
        };
        self.take(&object, listing).await
    }

    async fn take(&mut self, object: &O, listing: bool) -> Result<Option<String>, Closed> {
        let Some(meta) = object.metadata() else {
            let read = object::read(object, self.parse_options).err();
            if let Some(rejected) = read {
                self.say(Event::Rejected(rejected)).await?;
            }
            return Ok(None);
        };
        let version = meta.resource_version.clone();
        if let Some(key) = O::id(meta) {
            let hash = self.hash(meta);
            let held = self.held.insert(key, KnownObject { version: hash, list: self.list });
            // A relist brings back mostly what is known: the same version is the same object.
            if listing && held.is_some_and(|held| held.version == hash) {
                return Ok(version);
            }
        }
        match object::read(object, self.parse_options) {
            Ok((change, notes)) => {
                let event = match listing {
                    true => Event::Change(change),
                    false => {
                        Event::Watched { change, received: std::time::Instant::now(), triggered: meta.triggered() }
                    }
                };
                self.say(event).await?;
                for note in notes {
                    self.say(Event::Rejected(note)).await?;
                }
            }
            Err(rejected) => {
                // An object that became unusable no longer says what it said before.
                if let Some(key) = O::id(meta) {
                    self.say(Event::Change(O::gone(key))).await?;
                }
                self.say(Event::Rejected(rejected)).await?;
            }
        }
        Ok(version)
    }

    fn hash(&self, meta: &Meta) -> Version {
        (self.hasher.hash_one(&meta.resource_version) as u32).to_ne_bytes()
    }

    fn touch(&mut self, meta: &Meta) {
        if let Some(held) = O::id(meta).and_then(|key| self.held.get_mut(&key)) {
            held.list = self.list;
        }
    }

    async fn forget(&mut self, text: &str) -> Result<Option<String>, Closed> {
        let meta = meta_of(text);
        if let Some(key) = O::id(&meta) {
            self.held.remove(&key);
            self.say(Event::Change(O::gone(key))).await?;
        }
        Ok(meta.resource_version)
    }

    /// What the list did not have is gone.
    async fn list_is_whole(&mut self) -> Result<(), Closed> {
        let list = self.list;
        let gone: Vec<O::Id> =
            self.held.iter().filter(|(_, held)| held.list != list).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.held.remove(&key);
            self.say(Event::Change(O::gone(key))).await?;
        }
        if !std::mem::replace(&mut self.synced, true) {
            self.say(Event::Synced(self.resource)).await?;
        }
        self.say(Event::Health(self.resource, None)).await?;
        self.say(Event::Heard(self.resource)).await
    }
}

fn meta_of(text: &str) -> Meta {
    #[derive(Deserialize)]
    struct Only {
        metadata: Option<Meta>,
    }
    serde_json::from_str::<Only>(text).ok().and_then(|only| only.metadata).unwrap_or_default()
}

/// "Too large resource version": the server lost what it told us, as after a restore of its store.
fn is_too_new(status: &ApiStatus) -> bool {
    status.message.as_deref().is_some_and(|message| message.contains("Too large resource version"))
}

fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().take(200).filter(|c| !c.is_control()).collect()
}

/// Percent-encoding of a query value (RFC 3986 section 2.1).
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for octet in text.bytes() {
        match octet {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(octet)),
            _ => out += &format!("%{octet:02X}"),
        }
    }
    out
}

/// The lines of a response body.
struct LineReader {
    body: Body,
    buffer: Vec<u8>,
    /// Where the next line starts, and how far its end has been looked for.
    start: usize,
    scanned: usize,
}

impl LineReader {
    fn of(body: Body) -> LineReader {
        LineReader { body, buffer: Vec::new(), start: 0, scanned: 0 }
    }

    /// The next line without its end; `None` after the last.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, WatchError> {
        loop {
            if let Some(length) = self.buffer[self.scanned..].iter().position(|octet| *octet == b'\n') {
                let end = self.scanned + length;
                let line = self.buffer[self.start..end].to_vec();
                (self.start, self.scanned) = (end + 1, end + 1);
                if line.iter().any(|octet| !octet.is_ascii_whitespace()) {
                    return Ok(Some(line));
                }
                continue;
            }
            // Lines are taken from the front and the rest is moved once for each piece that arrives.
            self.buffer.drain(..self.start);
            self.start = 0;
            self.scanned = self.buffer.len();
            if self.buffer.is_empty() {
                self.buffer.shrink_to(KEPT);
            }
            if self.buffer.len() > MAX_LINE {
                return Err(WatchError::Unreadable("watch event", "a line over 16 MiB".to_owned()));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(octets) = frame.into_data() {
                        self.buffer.extend_from_slice(&octets);
                    }
                }
                Some(Err(error)) => return Err(WatchError::Unreachable(error_chain(&error))),
                None if self.buffer.iter().all(u8::is_ascii_whitespace) => return Ok(None),
                None => return Err(WatchError::Unreadable("watch event", "it ends in the middle".to_owned())),
            }
        }
    }

    /// Everything there is. Each piece has its own time: a slow body is not a dead one.
    async fn rest(&mut self) -> Result<Vec<u8>, WatchError> {
        loop {
            match timeout(SILENCE, self.body.frame()).await {
                Err(_) => return Err(WatchError::NoTrace(SILENCE)),
                Ok(None) => return Ok(std::mem::take(&mut self.buffer)),
                Ok(Some(Err(error))) => return Err(WatchError::Unreachable(error_chain(&error))),
                Ok(Some(Ok(frame))) => {
                    if let Ok(octets) = frame.into_data() {
                        self.buffer.extend_from_slice(&octets);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps() {
        let page = |next: Option<&str>| State::Page { next: next.map(Into::into) };
        let watch = |version: &str| State::Watch { version: version.into() };
        let paged = |next: Option<&str>| WatchOutcome::Paged { next: next.map(Into::into), version: "7".into() };
        let cases = [
            (
                "a streamed list that is whole goes on as a watch",
                State::Stream,
                WatchOutcome::At("7".into()),
                true,
                watch("7"),
            ),
            ("a server without streams is asked for pages", State::Stream, WatchOutcome::NoStreams, false, page(None)),
            ("a stream that breaks is asked for again", State::Stream, WatchOutcome::Failed, true, State::Stream),
            ("a page leads to the next", page(None), paged(Some("t")), false, page(Some("t"))),
            ("the last page leads to a watch", page(Some("t")), paged(None), false, watch("7")),
            ("a page that fails is asked for again", page(Some("t")), WatchOutcome::Failed, false, page(Some("t"))),
            ("410 in the middle of pages starts the list anew", page(Some("t")), WatchOutcome::Gone, false, page(None)),
            ("an event moves the watch on", watch("7"), WatchOutcome::At("8".into()), true, watch("8")),
            ("a watch that ends goes on where it stood", watch("8"), WatchOutcome::Ended, true, watch("8")),
            ("a watch that fails goes on where it stood", watch("8"), WatchOutcome::Failed, true, watch("8")),
            (
                "410 at a watch lists again, streamed where possible",
                watch("8"),
                WatchOutcome::Gone,
                true,
                State::Stream,
            ),
            ("410 at a watch lists again, else in pages", watch("8"), WatchOutcome::Gone, false, page(None)),
        ];
        for (case, state, word, streams, expected) in cases {
            assert_eq!(state.step(word, streams), expected, "{case}");
        }
    }

    #[test]
    fn query_values_are_encoded() {
        assert_eq!(encoded("spec.nodeName=a b/+"), "spec.nodeName%3Da%20b%2F%2B");
    }
}
