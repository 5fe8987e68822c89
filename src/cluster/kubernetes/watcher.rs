//! Lists and watches one resource, and sends its changes as events.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::marker::PhantomData;
use std::time::Duration;

use kube::client::Body;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout};

use super::lines::LineReader;
use super::request::{Collection, List, WatchError, error_event, error_response};
use super::state::{State, WatchOutcome};
use super::{Follow, SILENCE_TIMEOUT, WATCH_SILENCE_TIMEOUT};
use crate::cluster::object::{self, Meta, Object, ParseOptions, Rejected};
use crate::cluster::{Event, Events, Resource, error_chain};

/// Timeout for the next line of a streamed list. A server without streamed lists treats the request as a plain watch
/// and never ends the list.
const STREAM_TIMEOUT: Duration = Duration::from_secs(3);
/// Shortest and longest duration of a watch in seconds, as in client-go. It is random, so that servers that lost the API
/// together do not renew their watches together.
const WATCH_SECONDS: (u64, u64) = (300, 600);
/// Duration of a watch in seconds while the self-check has found a difference that the next one has to confirm.
const SUSPICIOUS_WATCH_SECONDS: u64 = 25;
/// Shortest and longest backoff between attempts.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// Longest backoff while the API is unreachable: there is nothing to overload, and its return is noticed soon.
const MAX_BACKOFF_UNREACHABLE: Duration = Duration::from_secs(3);

/// The watcher's record of an object, sufficient to detect a change of the object or its absence from a list. It has no
/// alignment, because there may be 150,000 of them.
pub(super) struct KnownObject {
    /// Hash of the resource version. Four bytes suffice to tell two versions of one object apart.
    pub(super) version: Version,
    /// Number of the last list that contained it.
    pub(super) list: u8,
}

pub(super) type Version = [u8; 4];

/// Lists and watches one resource.
pub(super) struct Watcher<O: Object> {
    pub(super) client: kube::Client,
    pub(super) resource: Resource,
    pub(super) collection: Collection,
    pub(super) parse_options: ParseOptions,
    pub(super) events: Events,
    pub(super) known: HashMap<O::Id, KnownObject>,
    pub(super) hasher: RandomState,
    pub(super) list: u8,
    pub(super) streams: bool,
    pub(super) synced: bool,
    /// Interval of the self-check; zero disables it.
    pub(super) check: Duration,
    pub(super) checked: Instant,
    /// Objects that differed at the last self-check, with the local version. Their events may only have been in flight.
    pub(super) suspects: HashMap<O::Id, Option<Version>>,
    pub(super) kind: PhantomData<fn() -> O>,
}

/// The outcome of a request, and the failure to report, if any.
type Fetched = (WatchOutcome, Option<WatchError>);

/// The receiver of events has been dropped, because the program is shutting down.
pub(super) struct Closed;

#[derive(Deserialize)]
struct WatchEvent<'a, T> {
    #[serde(rename = "type")]
    kind: &'a str,
    object: T,
}

impl<O: Object> Watcher<O> {
    pub(super) fn new(follow: Follow, resource: Resource, collection: Collection) -> Self {
        let Follow { client, parse_options, check, events } = follow;
        Watcher {
            client,
            resource,
            collection,
            parse_options,
            events,
            known: HashMap::new(),
            hasher: RandomState::new(),
            list: 0,
            streams: true,
            synced: false,
            check,
            checked: Instant::now(),
            suspects: HashMap::new(),
            kind: PhantomData,
        }
    }

    /// Follows the resource until the receiver of events is dropped.
    pub(super) async fn run(mut self) {
        let mut state = State::Stream;
        let mut wait = BACKOFF.0;
        let mut gone = None::<Instant>;
        loop {
            if matches!(state, State::Stream | State::Page { next: None }) {
                self.begin_list();
            }
            let before = state.clone();
            let requested_at = Instant::now();
            let outcome = match self.fetch(&mut state).await {
                Ok(outcome) => outcome,
                Err(Closed) => return,
            };
            // A watch that lasted longer than the backoff before it is a success, even if it carried no event.
            let progressed = state != before || requested_at.elapsed() > wait;
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
            let requested = match failure {
                WatchError::ApiStatus { retry_after: Some(requested), .. } => requested.min(BACKOFF.1),
                _ => Duration::ZERO,
            };
            let unreachable = matches!(failure, WatchError::Unreachable(_));
            if unreachable {
                wait = wait.min(MAX_BACKOFF_UNREACHABLE);
            }
            tokio::select! {
                () = tokio::time::sleep(requested.max(self.jittered(wait))) => {}
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
        wait / 2 + wait.mul_f64(self.dice(1000) as f64 / 2000.0)
    }

    /// Returns a random number below `sides`.
    fn dice(&self, sides: u64) -> u64 {
        self.hasher.hash_one(std::time::Instant::now()) % sides
    }

    /// Returns the duration of the next watch in seconds. The self-check runs when a watch ends.
    fn watch_seconds(&self) -> u64 {
        let (shortest, longest) = WATCH_SECONDS;
        match self.check.as_secs() {
            _ if !self.suspects.is_empty() => SUSPICIOUS_WATCH_SECONDS,
            check if check < shortest && !self.check.is_zero() => check.max(SUSPICIOUS_WATCH_SECONDS),
            _ => shortest + self.dice(longest - shortest),
        }
    }

    pub(super) async fn send(&self, event: Event) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }

    /// Sends the request of `state` and processes the response. Each event of a watch advances `state`.
    async fn fetch(&mut self, state: &mut State) -> Result<Fetched, Closed> {
        let uri = self.collection.uri(state, self.watch_seconds());
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
        let (head, body) = response.into_parts();
        let mut lines = LineReader::of(body);
        if !head.status.is_success() {
            return Ok(error_response(state, &head, &lines.rest().await.unwrap_or_default()));
        }
        match state {
            State::Page { .. } => match lines.rest().await {
                Ok(page) => self.take_page(&page).await,
                Err(failure) => Ok((WatchOutcome::Failed, Some(failure))),
            },
            State::Stream | State::Watch { .. } => self.take_events(state, &mut lines).await,
        }
    }

    async fn take_page(&mut self, page: &[u8]) -> Result<Fetched, Closed> {
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

    async fn take_events(&mut self, state: &mut State, lines: &mut LineReader) -> Result<Fetched, Closed> {
        let opened = Instant::now();
        loop {
            let listing = *state == State::Stream;
            let patience = if listing { STREAM_TIMEOUT } else { WATCH_SILENCE_TIMEOUT };
            let line = match timeout(patience, lines.next()).await {
                Err(_) if listing => return Ok((WatchOutcome::NoStreams, None)),
                Err(_) => return Ok((WatchOutcome::Failed, Some(WatchError::Silent(WATCH_SILENCE_TIMEOUT)))),
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
    async fn take_other(&mut self, line: &[u8], state: &mut State) -> Result<Result<Option<String>, Fetched>, Closed> {
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
            "ERROR" => return Ok(Err(error_event(event.object.get()))),
            _ => None,
        }))
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
                if let Some(complaint) = Rejected::summary(notes) {
                    self.send(Event::Rejected(complaint)).await?;
                }
            }
            Err(rejected) => {
                // The last valid version of an object no longer applies once the object has become invalid.
                if let Some(key) = O::id(meta) {
                    self.send(Event::Change(O::gone(key))).await?;
                }
                self.send(Event::Rejected(rejected)).await?;
            }
        }
        Ok(version)
    }

    pub(super) fn hash(&self, meta: &Meta) -> Version {
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

pub(super) fn meta_of(text: &str) -> Meta {
    #[derive(Deserialize)]
    struct Only {
        metadata: Option<Meta>,
    }
    serde_json::from_str::<Only>(text).ok().and_then(|only| only.metadata).unwrap_or_default()
}
