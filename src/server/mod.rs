//! Sockets. A transport passes each message to [`answer`](crate::answer::answer) and sends the reply; it knows nothing
//! about names. All of the program's `unsafe` code is in this folder, and each block states why it is sound.

mod clients;
mod counters;
pub mod encrypted;
mod handler;
mod late;
pub mod tcp;
pub mod udp;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use thiserror::Error;

pub use clients::{Clients, Limits};
pub use counters::{Counters, DURATION_BOUNDS, RCODES, SIZE_BOUNDS, Snapshot, TYPES, ZONE_CLASSES};
pub use handler::{Handler, TransportCounters};

use crate::zone::Zone;

/// Limit on the unsent replies of one connection, in bytes. At the limit, no more of its queries are answered.
const MAX_BACKLOG: usize = 256 * 1024;
/// Time allowed for closing a connection gracefully.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Extra time for which a connection with queries in flight stays open; longer than any upstream timeout.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(5);

/// The published zone that answers come from: the only state that the two planes share.
pub type Published = Arc<ArcSwap<Zone>>;

/// Failure to listen on an address.
#[derive(Debug, Error)]
#[error("cannot listen on {address} ({transport}): {source}")]
pub struct BindError {
    /// The configured address.
    pub address: SocketAddr,
    /// Name of the transport, as in metrics.
    pub transport: &'static str,
    /// Error of the operating system.
    pub source: std::io::Error,
}

/// Returns a client's address as lookups expect it: an IPv4-mapped IPv6 address becomes IPv4.
fn canonical(address: SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}
