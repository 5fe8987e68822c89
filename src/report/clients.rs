//! The clients that cause most of the upstreams' work.

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

/// Returns a finding for each client whose queries were refused.
pub fn findings(clients: &[ClientEntry]) -> impl Iterator<Item = Finding> {
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
