//! Requests for one resource, and the errors that the API returns.

use std::time::Duration;

use form_urlencoded::Serializer;
use http::header::RETRY_AFTER;
use http::response::Parts;
use serde::Deserialize;
use serde_json::value::RawValue;
use thiserror::Error;

use super::state::{State, WatchOutcome};

/// Why a request to the API failed.
#[derive(Debug, Error)]
pub(super) enum WatchError {
    #[error("cannot reach the API: {0}")]
    Unreachable(String),
    #[error("the API returned {code} {reason}")]
    ApiStatus { code: u16, reason: String, retry_after: Option<Duration> },
    #[error("the API sent an invalid {0}: {1}")]
    Unreadable(&'static str, String),
    #[error("the API repeatedly rejects a watch from the resource version of its own list (410 Gone)")]
    GoneAgain,
    #[error("the API sent nothing for {} seconds", .0.as_secs())]
    Silent(Duration),
}

/// The collection of a resource, and how it is listed.
pub(super) struct Collection {
    pub(super) path: String,
    /// Maximum number of objects per page.
    pub(super) page: u32,
    /// A field selector that restricts the collection.
    pub(super) selector: Option<String>,
}

impl Collection {
    /// Returns the request target for `state`. A watch ends after `watch` seconds.
    pub(super) fn uri(&self, state: &State, watch: u64) -> String {
        let seconds = watch.to_string();
        let watch = [("watch", "true"), ("allowWatchBookmarks", "true"), ("timeoutSeconds", seconds.as_str())];
        self.with(|query| match state {
            State::Stream => {
                let initial = [("sendInitialEvents", "true"), ("resourceVersionMatch", "NotOlderThan")];
                query.extend_pairs(watch).extend_pairs(initial);
            }
            State::Page { next } => self.page_query(query, next.as_deref()),
            State::Watch { version } => {
                query.extend_pairs(watch).append_pair("resourceVersion", version);
            }
        })
    }

    /// Returns the request target for a page from the server's watch cache, at least as new as resource version
    /// `at_least`.
    pub(super) fn cached_page_uri(&self, next: Option<&str>, at_least: &str) -> String {
        self.with(|query| {
            self.page_query(query, next);
            if next.is_none() {
                query.append_pair("resourceVersion", at_least).append_pair("resourceVersionMatch", "NotOlderThan");
            }
        })
    }

    fn page_query(&self, query: &mut Serializer<'_, String>, next: Option<&str>) {
        query.append_pair("limit", &self.page.to_string());
        query.extend_pairs(next.map(|next| ("continue", next)));
    }

    fn with(&self, fill: impl FnOnce(&mut Serializer<'_, String>)) -> String {
        let mut query = Serializer::new(String::new());
        fill(&mut query);
        query.extend_pairs(self.selector.as_deref().map(|selector| ("fieldSelector", selector)));
        format!("{}?{}", self.path, query.finish())
    }
}

/// A page of a list. Objects are parsed one by one.
#[derive(Deserialize)]
pub(super) struct List<'a> {
    #[serde(default)]
    pub(super) metadata: Option<ListMeta>,
    #[serde(borrow, default)]
    pub(super) items: Option<Vec<Option<&'a RawValue>>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMeta {
    pub(super) resource_version: Option<String>,
    #[serde(rename = "continue")]
    pub(super) next: Option<String>,
}

/// `v1` Status: the API's form of an error.
#[derive(Default, Deserialize)]
pub(super) struct ApiStatus {
    pub(super) code: Option<u16>,
    pub(super) reason: Option<String>,
    pub(super) message: Option<String>,
    pub(super) details: Option<StatusDetails>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StatusDetails {
    pub(super) retry_after_seconds: Option<u64>,
}

/// Converts an HTTP error response to an outcome, and to a failure unless the error is a normal step of the protocol.
pub(super) fn error_response(state: &State, head: &Parts, body: &[u8]) -> (WatchOutcome, Option<WatchError>) {
    let code = head.status.as_u16();
    let header = head.headers.get(RETRY_AFTER);
    let retry_after = header.and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_secs);
    let status: ApiStatus = serde_json::from_slice(body)
        .unwrap_or_else(|_| ApiStatus { message: Some(excerpt(body)), ..ApiStatus::default() });
    let asked = status.details.as_ref().and_then(|details| details.retry_after_seconds).map(Duration::from_secs);
    let outcome = match (code, state) {
        (410, _) => WatchOutcome::Gone,
        (400 | 404 | 405 | 422, State::Stream) => WatchOutcome::NoStreams,
        _ if is_too_new(&status) => WatchOutcome::Gone,
        _ => WatchOutcome::Failed,
    };
    // Both are normal steps of the protocol, after which the watcher sends a different request.
    let expected = matches!(outcome, WatchOutcome::NoStreams)
        || (outcome == WatchOutcome::Gone && matches!(state, State::Watch { .. }));
    let reason = status.message.or(status.reason).unwrap_or_default();
    let failure = WatchError::ApiStatus { code, reason: reason.trim().to_owned(), retry_after: asked.or(retry_after) };
    (outcome, (!expected).then_some(failure))
}

/// Converts the ERROR event of a watch to an outcome, and to a failure unless it is a normal step of the protocol.
pub(super) fn error_event(object: &str) -> (WatchOutcome, Option<WatchError>) {
    let status: ApiStatus = serde_json::from_str(object).unwrap_or_default();
    let code = status.code.unwrap_or(500);
    if code == 410 || is_too_new(&status) {
        return (WatchOutcome::Gone, None);
    }
    let retry_after = status.details.and_then(|details| details.retry_after_seconds).map(Duration::from_secs);
    let reason = status.message.or(status.reason).unwrap_or_else(|| excerpt(object.as_bytes()));
    (WatchOutcome::Failed, Some(WatchError::ApiStatus { code, reason, retry_after }))
}

/// Whether the error is "Too large resource version": the server lost newer state, for example when etcd was restored.
fn is_too_new(status: &ApiStatus) -> bool {
    status.message.as_deref().is_some_and(|message| message.contains("Too large resource version"))
}

fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(body).chars().take(200).filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_values_are_encoded() {
        let selector = Some("spec.nodeName=a b/+".to_owned());
        let pods = Collection { path: "/api/v1/pods".to_owned(), page: 500, selector };
        let uri = pods.uri(&State::Page { next: Some("a&b".to_owned()) }, 300);
        assert_eq!(uri, "/api/v1/pods?limit=500&continue=a%26b&fieldSelector=spec.nodeName%3Da+b%2F%2B");
    }
}
