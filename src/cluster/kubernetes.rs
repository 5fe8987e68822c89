//! Facts from the Kubernetes API: list and watch, with one task and one connection per resource.
//!
//! A pure function, [`State::step`], decides the next request; [`Watcher`] carries it out. Lists are streamed
//! (`sendInitialEvents`) unless the server's response shows that it cannot stream; then they are read in pages. Each
//! listed object is compared with the local state as it arrives, so memory never holds two copies of the cluster.

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

/// Requested length of a watch in seconds. A short watch reveals a silently dead connection soon.
const WATCH_SECONDS: u64 = 25;
/// Silence after which a connection counts as dead: the server ends an idle watch earlier than this.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout for the next line of a streamed list. A server without streamed lists treats the request as a plain watch
/// and never ends the list.
const STREAM_TIMEOUT: Duration = Duration::from_secs(3);
/// Shortest and longest backoff between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// Media type of a list that carries only the metadata of its objects.
const METADATA: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
/// Number of differing objects that the self-check logs by name.
const MAX_EXAMPLES: usize = 3;
/// Largest buffer, in bytes, that an idle watch retains.
const RETAINED_BUFFER: usize = 16 * 1024;
/// Longest backoff while the API is unreachable: there is nothing to overload, and its return is noticed soon.
const MAX_BACKOFF_UNREACHABLE: Duration = Duration::from_secs(3);
/// Longest line of a watch, in bytes. Objects are far smaller: etcd limits them to 1.5 MB.
const MAX_LINE: usize = 16 << 20;

/// Why a request to the API failed.
#[derive(Debug, Error)]
enum WatchError {
    #[error("cannot reach the API: {0}")]
    Unreachable(String),
    #[error("the API returned {code} {reason}")]
    ApiStatus { code: u16, reason: String, retry_after: Option<Duration> },
    #[error("the API sent an invalid {0}: {1}")]
    Unreadable(&'static str, String),
    #[error("the API keeps rejecting a watch from the resource version of its own list (410 Gone)")]
    GoneAgain,
    #[error("the API sent nothing for {} seconds", .0.as_secs())]
    Silent(Duration),
}

/// The next request of a watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// A streamed list, which continues as a watch.
    Stream,
    /// A page of a list.
    Page {
        /// The server's `continue` token; `None` for the first page.
        next: Option<String>,
    },
    /// A watch for changes after a resource version.
    Watch {
        /// The resource version.
        version: String,
    },
}

/// The result of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchOutcome {
    /// A page arrived.
    Paged {
        /// Token of the next page; `None` after the last one.
        next: Option<String>,
        /// Resource version of the list.
        version: String,
    },
    /// The list is complete, or an event or bookmark arrived. The local state is now at this resource version.
    At(String),
    /// The watch ended normally.
    Ended,
    /// The resource version or token has expired (410), or is newer than the server's own.
    Gone,
    /// The server does not support streamed lists.
    NoStreams,
    /// Any other failure.
    Failed,
}

impl State {
    /// Returns the next state. `streams` says whether to request lists as streams.
    pub fn step(self, outcome: WatchOutcome, streams: bool) -> State {
        let list = || if streams { State::Stream } else { State::Page { next: None } };
        match (self, outcome) {
            (_, WatchOutcome::NoStreams) => State::Page { next: None },
            (_, WatchOutcome::Gone) => list(),
            (_, WatchOutcome::Paged { next: Some(next), .. }) => State::Page { next: Some(next) },
            (_, WatchOutcome::Paged { next: None, version }) => State::Watch { version },
            (_, WatchOutcome::At(version)) => State::Watch { version },
            // The stream ended before its list was complete.
            (State::Stream, WatchOutcome::Ended | WatchOutcome::Failed) => list(),
            // A page is requested again with the same token; a watch resumes at its resource version.
            (state, WatchOutcome::Ended | WatchOutcome::Failed) => state,
        }
    }
}

/// What the watcher remembers of an object: enough to detect a change, or its absence from a list. Unaligned bytes,
/// because there may be 150,000 of them.
struct KnownObject {
    /// Hash of the resource version. Four bytes suffice to tell two versions of one object apart.
    version: Version,
    /// Number of the last list that contained it.
    list: u8,
}

type Version = [u8; 4];

/// Lists and watches one resource.
pub struct Watcher<O: Object> {
    client: kube::Client,
    resource: Resource,
    path: &'static str,
    selector: Option<String>,
    page: u32,
    parse_options: ParseOptions,
    events: Events,
    known: HashMap<O::Id, KnownObject>,
    hasher: RandomState,
    list: u8,
    streams: bool,
    synced: bool,
    /// Interval of the self-check; zero disables it.
    check: Duration,
    checked: Instant,
    /// Objects that differed at the last self-check, with the local version. Their events may only have been in flight.
    suspects: HashMap<O::Id, Option<Version>>,
    kind: PhantomData<O>,
}

/// The receiver of events is gone, because the program is shutting down.
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

/// `v1` Status: the API's form of an error.
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
    /// No pods.
    Off,
    /// The pods of one node.
    Node(String),
    /// All pods.
    All,
}

/// Starts a watcher for every resource that answers depend on; returns the resources that must sync first.
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
    // Slices are large: a smaller page limits the memory that a list needs.
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
            known: HashMap::new(),
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

    /// Follows the resource until the receiver of events is dropped.
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
            let outcome = match self.fetch(&mut state).await {
                Ok(outcome) => outcome,
                Err(Closed) => return,
            };
            // A watch that lasted longer than the backoff before it is a success, even if it carried no event.
            let progressed = state != before || asked_at.elapsed() > wait;
            let (mut outcome, failure) = outcome;
            if failure.is_none() && matches!((&state, &outcome), (State::Watch { .. }, WatchOutcome::Ended)) {
                match self.compare(&state).await {
                    Ok(true) => outcome = WatchOutcome::Gone,
                    Ok(false) => {}
                    Err(Closed) => return,
                }
            }
            if outcome == WatchOutcome::NoStreams {
                self.streams = false;
            }
            // One 410 is part of the protocol; repeated 410s are a failure and need a backoff.
            let again = outcome == WatchOutcome::Gone
                && gone.replace(Instant::now()).is_some_and(|last| last.elapsed() < SILENCE_TIMEOUT);
            let failure = failure.or(again.then_some(WatchError::GoneAgain));
            let progressed = progressed && !again;
            state = state.step(outcome, self.streams);
            let reason = failure.as_ref().map(WatchError::to_string);
            if progressed && failure.is_none() {
                wait = BACKOFF.0;
            }
            let Some(failure) = failure else {
                if self.send(Event::Health(self.resource, None)).await.is_err() {
                    return;
                }
                continue;
            };
            if self.send(Event::Health(self.resource, reason)).await.is_err() {
                return;
            }
            let asked = match failure {
                WatchError::ApiStatus { retry_after: Some(asked), .. } => asked.min(BACKOFF.1),
                _ => Duration::ZERO,
            };
            let unreachable = matches!(failure, WatchError::Unreachable(_));
            if unreachable {
                wait = wait.min(MAX_BACKOFF_UNREACHABLE);
            }
            tokio::select! {
                () = tokio::time::sleep(asked.max(self.jittered(wait))) => {}
                () = self.events.closed() => return,
            }
            let longest = if unreachable { MAX_BACKOFF_UNREACHABLE } else { BACKOFF.1 };
            wait = if progressed { BACKOFF.0 } else { (wait * 2).min(longest) };
        }
    }

    /// Numbers a new list. When the number would overflow, every remembered object moves to list 0 and this is list 1.
    fn begin_list(&mut self) {
        self.list = self.list.checked_add(1).unwrap_or_else(|| {
            self.known.values_mut().for_each(|known| known.list = 0);
            1
        });
    }

    /// Returns half to all of `wait`, so that servers that lost the API together do not reconnect together.
    fn jittered(&self, wait: Duration) -> Duration {
        let dice = self.hasher.hash_one(std::time::Instant::now()) % 1000;
        wait / 2 + wait.mul_f64(dice as f64 / 2000.0)
    }

    async fn send(&self, event: Event) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }

    /// Sends the request of `state` and processes the response. Each event of a watch advances `state`.
    async fn fetch(&mut self, state: &mut State) -> Result<(WatchOutcome, Option<WatchError>), Closed> {
        let uri = self.uri(state);
        let request = http::Request::get(uri).header(http::header::ACCEPT, "application/json").body(Body::empty());
        let request = match request {
            Ok(request) => request,
            Err(error) => return Ok((WatchOutcome::Failed, Some(WatchError::Unreachable(error.to_string())))),
        };
        let response = match timeout(SILENCE_TIMEOUT, self.client.send(request)).await {
            Err(_) => return Ok((WatchOutcome::Failed, Some(WatchError::Silent(SILENCE_TIMEOUT)))),
            Ok(Err(error)) => return Ok((WatchOutcome::Failed, Some(WatchError::Unreachable(error_chain(&error))))),
            Ok(Ok(response)) => response,
        };
        if !response.status().is_success() {
            return Ok(self.error_response(state, response).await);
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

    /// Runs the self-check if it is due: compares the local state with the API. Returns whether a relist is needed.
    ///
    /// A difference counts only if another watch leaves it unchanged. Until then, an event that explains it may be in
    /// flight.
    async fn compare(&mut self, state: &State) -> Result<bool, Closed> {
        let State::Watch { version } = state else { return Ok(false) };
        let due = !self.check.is_zero() && self.checked.elapsed() >= self.check;
        if self.suspects.is_empty() && !due {
            return Ok(false);
        }
        let Some(server) = self.versions(version).await else { return Ok(false) };
        let mut differing: HashMap<O::Id, Option<Version>> = HashMap::new();
        for (key, version) in &server {
            let known = self.known.get(key).map(|known| known.version);
            if known != Some(*version) {
                differing.insert(key.clone(), known);
            }
        }
        for (key, known) in &self.known {
            if !server.contains_key(key) {
                differing.insert(key.clone(), Some(known.version));
            }
        }
        let suspects = std::mem::take(&mut self.suspects);
        let confirmed: Vec<&O::Id> =
            differing.iter().filter(|(key, known)| suspects.get(key) == Some(known)).map(|(key, _)| key).collect();
        let examples = confirmed.iter().take(MAX_EXAMPLES).map(ToString::to_string).collect();
        let wrong = confirmed.len();
        self.checked = Instant::now();
        if wrong == 0 {
            self.suspects = differing;
        } else {
            // The relist must read every object again, even one whose version is the remembered one.
            self.known.values_mut().for_each(|known| known.version[0] ^= 1);
        }
        if self.suspects.is_empty() {
            self.send(Event::Compared(self.resource, wrong, examples)).await?;
        }
        Ok(wrong > 0)
    }

    /// Reads the key and version of every object from the server's watch cache, in pages. `None` if a request fails.
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
            let response = timeout(SILENCE_TIMEOUT, self.client.send(request)).await.ok()?.ok()?;
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

    async fn error_response(
        &self,
        state: &State,
        response: http::Response<Body>,
    ) -> (WatchOutcome, Option<WatchError>) {
        let code = response.status().as_u16();
        let header = response.headers().get(http::header::RETRY_AFTER);
        let retry_after = header.and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_secs);
        let mut lines = LineReader::of(response.into_body());
        let body = lines.rest().await.unwrap_or_default();
        let status: ApiStatus = serde_json::from_slice(&body)
            .unwrap_or_else(|_| ApiStatus { message: Some(excerpt(&body)), ..ApiStatus::default() });
        let asked = status.details.as_ref().and_then(|details| details.retry_after_seconds).map(Duration::from_secs);
        let outcome = match (code, state) {
            (410, _) => WatchOutcome::Gone,
            (400 | 404 | 405 | 422, State::Stream) => WatchOutcome::NoStreams,
            _ if is_too_new(&status) => WatchOutcome::Gone,
            _ => WatchOutcome::Failed,
        };
        // Both are normal steps of the protocol: the next request is a different one.
        let expected = matches!(outcome, WatchOutcome::NoStreams)
            || (outcome == WatchOutcome::Gone && matches!(state, State::Watch { .. }));
        let reason = status.message.or(status.reason).unwrap_or_default();
        let failure =
            WatchError::ApiStatus { code, reason: reason.trim().to_owned(), retry_after: asked.or(retry_after) };
        (outcome, (!expected).then_some(failure))
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
            self.finish_list().await?;
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
            let patience = if listing { STREAM_TIMEOUT } else { SILENCE_TIMEOUT };
            let line = match timeout(patience, lines.next()).await {
                Err(_) if listing => return Ok((WatchOutcome::NoStreams, None)),
                Err(_) => return Ok((WatchOutcome::Failed, Some(WatchError::Silent(SILENCE_TIMEOUT)))),
                Ok(Err(failure)) => return Ok((WatchOutcome::Failed, Some(failure))),
                Ok(Ok(None)) if listing => return Ok((WatchOutcome::NoStreams, None)),
                // Without a delay, a server that ends every watch at once would be polled in a tight loop.
                Ok(Ok(None)) if opened.elapsed() < Duration::from_millis(100) => {
                    tokio::time::sleep(BACKOFF.0).await;
                    return Ok((WatchOutcome::Ended, None));
                }
                Ok(Ok(None)) => return Ok((WatchOutcome::Ended, None)),
                Ok(Ok(Some(line))) => line,
            };
            // Nearly every line is an added or modified object, so that case is parsed in one pass.
            let version = match serde_json::from_slice::<WatchEvent<'_, O>>(&line) {
                Ok(WatchEvent { kind: "ADDED" | "MODIFIED", object }) => self.take(&object, listing).await?,
                _ => match self.take_other(&line, state).await? {
                    Ok(version) => version,
                    Err(end) => return Ok(end),
                },
            };
            if let (State::Watch { .. }, Some(version)) = (&*state, version) {
                *state = std::mem::replace(state, State::Stream).step(WatchOutcome::At(version), self.streams);
            }
        }
    }

    /// Processes any line other than a valid added or modified object. An inner `Err` ends the watch.
    async fn take_other(
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
                    self.finish_list().await?;
                    *state = State::Watch { version: String::new() };
                }
                self.send(Event::Heard(self.resource)).await?;
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

    /// Processes one object and returns its resource version. An object that does not parse is rejected on its own.
    async fn take_object(&mut self, text: &str, listing: bool) -> Result<Option<String>, Closed> {
        let object: O = match serde_json::from_str(text) {
            Ok(object) => object,
            Err(error) => {
                let meta = meta_of(text);
                let rejected = Rejected { kind: O::KIND, name: meta.label(), reason: error.to_string() };
                self.send(Event::Rejected(rejected)).await?;
                // The facts from its last valid version may be outdated, but the object still exists: do not remove it.
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
                self.send(Event::Rejected(rejected)).await?;
            }
            return Ok(None);
        };
        let version = meta.resource_version.clone();
        if let Some(key) = O::id(meta) {
            let hash = self.hash(meta);
            let known = self.known.insert(key, KnownObject { version: hash, list: self.list });
            // Most objects of a relist are unchanged: the same version is the same object.
            if listing && known.is_some_and(|known| known.version == hash) {
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
                self.send(event).await?;
                for note in notes {
                    self.send(Event::Rejected(note)).await?;
                }
            }
            Err(rejected) => {
                // The facts from the last valid version of an object do not apply once it has become invalid.
                if let Some(key) = O::id(meta) {
                    self.send(Event::Change(O::gone(key))).await?;
                }
                self.send(Event::Rejected(rejected)).await?;
            }
        }
        Ok(version)
    }

    fn hash(&self, meta: &Meta) -> Version {
        (self.hasher.hash_one(&meta.resource_version) as u32).to_ne_bytes()
    }

    fn touch(&mut self, meta: &Meta) {
        if let Some(known) = O::id(meta).and_then(|key| self.known.get_mut(&key)) {
            known.list = self.list;
        }
    }

    async fn forget(&mut self, text: &str) -> Result<Option<String>, Closed> {
        let meta = meta_of(text);
        if let Some(key) = O::id(&meta) {
            self.known.remove(&key);
            self.send(Event::Change(O::gone(key))).await?;
        }
        Ok(meta.resource_version)
    }

    /// Completes a list: removes every object that it did not contain.
    async fn finish_list(&mut self) -> Result<(), Closed> {
        let list = self.list;
        let gone: Vec<O::Id> =
            self.known.iter().filter(|(_, known)| known.list != list).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.known.remove(&key);
            self.send(Event::Change(O::gone(key))).await?;
        }
        if !std::mem::replace(&mut self.synced, true) {
            self.send(Event::Synced(self.resource)).await?;
        }
        self.send(Event::Health(self.resource, None)).await?;
        self.send(Event::Heard(self.resource)).await
    }
}

fn meta_of(text: &str) -> Meta {
    #[derive(Deserialize)]
    struct Only {
        metadata: Option<Meta>,
    }
    serde_json::from_str::<Only>(text).ok().and_then(|only| only.metadata).unwrap_or_default()
}

/// Whether the error is "Too large resource version": the server lost newer state, for example when etcd was restored.
fn is_too_new(status: &ApiStatus) -> bool {
    status.message.as_deref().is_some_and(|message| message.contains("Too large resource version"))
}

fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().take(200).filter(|c| !c.is_control()).collect()
}

/// Percent-encodes a query value (RFC 3986 section 2.1).
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
    /// Start of the next line, and the position up to which no line end was found.
    start: usize,
    scanned: usize,
}

impl LineReader {
    fn of(body: Body) -> LineReader {
        LineReader { body, buffer: Vec::new(), start: 0, scanned: 0 }
    }

    /// Returns the next line without its line end; `None` after the last one.
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
            // The unread rest moves to the front once per received frame, not once per line.
            self.buffer.drain(..self.start);
            self.start = 0;
            self.scanned = self.buffer.len();
            if self.buffer.is_empty() {
                self.buffer.shrink_to(RETAINED_BUFFER);
            }
            if self.buffer.len() > MAX_LINE {
                return Err(WatchError::Unreadable("watch event", "it is longer than 16 MiB".to_owned()));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(octets) = frame.into_data() {
                        self.buffer.extend_from_slice(&octets);
                    }
                }
                Some(Err(error)) => return Err(WatchError::Unreachable(error_chain(&error))),
                None if self.buffer.iter().all(u8::is_ascii_whitespace) => return Ok(None),
                None => return Err(WatchError::Unreadable("watch event", "it is truncated".to_owned())),
            }
        }
    }

    /// Returns the whole rest of the body. The timeout applies to each frame: a slow body is not a dead one.
    async fn rest(&mut self) -> Result<Vec<u8>, WatchError> {
        loop {
            match timeout(SILENCE_TIMEOUT, self.body.frame()).await {
                Err(_) => return Err(WatchError::Silent(SILENCE_TIMEOUT)),
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
    fn each_outcome_leads_to_the_right_next_request() {
        let page = |next: Option<&str>| State::Page { next: next.map(Into::into) };
        let watch = |version: &str| State::Watch { version: version.into() };
        let paged = |next: Option<&str>| WatchOutcome::Paged { next: next.map(Into::into), version: "7".into() };
        let cases = [
            (
                "a complete streamed list continues as a watch",
                State::Stream,
                WatchOutcome::At("7".into()),
                true,
                watch("7"),
            ),
            (
                "a server without streamed lists gets a paged list",
                State::Stream,
                WatchOutcome::NoStreams,
                false,
                page(None),
            ),
            ("a broken stream is requested again", State::Stream, WatchOutcome::Failed, true, State::Stream),
            ("a page leads to the next", page(None), paged(Some("t")), false, page(Some("t"))),
            ("the last page leads to a watch", page(Some("t")), paged(None), false, watch("7")),
            ("a failed page is requested again", page(Some("t")), WatchOutcome::Failed, false, page(Some("t"))),
            ("410 between pages restarts the list", page(Some("t")), WatchOutcome::Gone, false, page(None)),
            ("an event advances the watch", watch("7"), WatchOutcome::At("8".into()), true, watch("8")),
            ("a watch that ended resumes at its version", watch("8"), WatchOutcome::Ended, true, watch("8")),
            ("a failed watch resumes at its version", watch("8"), WatchOutcome::Failed, true, watch("8")),
            ("410 during a watch starts a streamed relist", watch("8"), WatchOutcome::Gone, true, State::Stream),
            (
                "without streams, 410 during a watch starts a paged relist",
                watch("8"),
                WatchOutcome::Gone,
                false,
                page(None),
            ),
        ];
        for (case, state, outcome, streams, expected) in cases {
            assert_eq!(state.step(outcome, streams), expected, "{case}");
        }
    }

    #[test]
    fn query_values_are_encoded() {
        assert_eq!(encoded("spec.nodeName=a b/+"), "spec.nodeName%3Da%20b%2F%2B");
    }
}
