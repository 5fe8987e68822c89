//! The self-check: compares the local state of a watcher with the API, and repairs differences by a relist.

use std::collections::HashMap;

use kube::client::Body;
use tokio::time::{Instant, timeout};

use super::SILENCE_TIMEOUT;
use super::lines::LineReader;
use super::request::List;
use super::state::State;
use super::watcher::{Closed, Version, Watcher, meta_of};
use crate::cluster::Event;
use crate::cluster::object::Object;

/// Media type of a list that carries only the metadata of its objects.
const METADATA: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
/// Number of differing objects that the self-check logs by name.
const MAX_EXAMPLES: usize = 3;

impl<O: Object> Watcher<O> {
    /// Runs the self-check if it is due: compares the local state with the API. Returns whether a relist is needed.
    ///
    /// A difference counts only if another watch leaves it unchanged. Until then, an event that explains it may be in
    /// flight.
    pub(super) async fn compare(&mut self, state: &State) -> Result<bool, Closed> {
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
            let uri = self.collection.cached_page_uri(next.as_deref(), at_least);
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
}
