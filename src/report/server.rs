//! The state of a running server, for operators: its source, its upstreams, and the clients that cause most of their
//! work.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::doctor::{Finding, Severity};

/// What one client has asked lately; older queries count less.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientEntry {
    /// Its address.
    pub address: IpAddr,
    /// Its namespace; empty if it is not known.
    pub namespace: String,
    /// Queries that neither the table nor the cache could answer.
    pub misses: u64,
    /// Those of them that were refused, because the client's or the zone's share was used up.
    pub refused: u64,
}

/// A server's own report.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Number of Services in the table.
    pub services: usize,
    /// Number of endpoints in the table.
    pub endpoints: usize,
    /// Resources of the source.
    pub source: Vec<ResourceEntry>,
    /// For how long saved facts have been served, in seconds; `None` if the source has synced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saved_seconds: Option<f64>,
    /// Upstreams, in the order of the configuration.
    pub upstreams: Vec<UpstreamEntry>,
    /// The busiest clients, busiest first.
    pub clients: Vec<ClientEntry>,
}

/// A resource that a server follows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResourceEntry {
    /// Its plural name, or `manifests`.
    pub resource: String,
    /// Seconds since the last message about it; `None` if there was none.
    pub age_seconds: Option<f64>,
    /// Why it fails; `None` if it works.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// An upstream of a server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamEntry {
    /// Its address.
    pub server: String,
    /// What the server thinks of it.
    pub state: UpstreamState,
}

/// The state of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpstreamState {
    /// It replies.
    InUse,
    /// It does not reply.
    Down,
    /// It forwards queries back; it is not asked any more.
    Looping,
}

impl UpstreamState {
    /// Returns the state in words.
    pub fn as_str(self) -> &'static str {
        match self {
            UpstreamState::InUse => "in use",
            UpstreamState::Down => "does not reply",
            UpstreamState::Looping => "forwarding loop; not queried",
        }
    }
}

/// Longest time without a message from a source that follows an API, in seconds: bookmarks come every minute or so, and
/// a silent watch is repeated after 150 s.
const SILENCE: f64 = 200.0;

/// Returns the findings about a server.
pub fn findings(status: &ServerStatus) -> impl Iterator<Item = Finding> {
    let finding = |severity, code, object: &str, [what, why, fix]: [String; 3]| Finding {
        severity,
        code,
        object: object.to_owned(),
        what,
        why,
        fix,
    };
    let source = status.source.iter().filter_map(move |entry| {
        let what = match (&entry.error, entry.age_seconds) {
            (Some(error), _) => format!("the server cannot follow it: {error}"),
            (None, Some(age)) if age > SILENCE => format!("the server last heard of it {age:.0} s ago"),
            _ => return None,
        };
        let [why, fix] = match entry.resource.as_str() {
            "manifests" => [
                "of each file, the last valid text since the start remains in effect; the other files apply",
                "correct or restore the file or folder",
            ],
            _ => [
                "the server answers from what it knew before",
                "check that the server reaches its source, and may list and watch it",
            ],
        };
        let (why, fix) = (why.to_owned(), fix.to_owned());
        Some(finding(Severity::Error, "source-failing", &entry.resource, [what, why, fix]))
    });
    let upstreams = status.upstreams.iter().filter_map(move |entry| {
        let (why, fix) = match entry.state {
            UpstreamState::InUse => return None,
            UpstreamState::Down => {
                ("other upstreams answer instead, or none", "check its address, and the network to it")
            }
            UpstreamState::Looping => {
                ("it would send each query back", "name an upstream that does not ask this server")
            }
        };
        let words = [format!("this upstream: {}", entry.state.as_str()), why.to_owned(), fix.to_owned()];
        Some(finding(Severity::Error, "upstream-failing", &entry.server, words))
    });
    source.chain(upstreams).chain(busy(&status.clients))
}

/// Returns a finding for each client whose queries were refused.
fn busy(clients: &[ClientEntry]) -> impl Iterator<Item = Finding> {
    clients.iter().filter(|client| client.refused > 0).map(|client| {
        let of = if client.namespace.is_empty() { String::new() } else { format!(" of {}", client.namespace) };
        Finding {
            severity: Severity::Warning,
            code: "busy-client",
            object: client.address.to_string(),
            what: format!(
                "this client{of} asks too much of the upstreams: {} of its last {} queries were refused",
                client.refused, client.misses
            ),
            why: "it got SERVFAIL for them, so that other clients are still served".to_owned(),
            fix: "look at what it resolves; raise --max-concurrent if it really needs this".to_owned(),
        }
    })
}
