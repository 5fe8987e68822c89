//! Sockets. A transport hands octets to [`answer`](crate::answer::answer) and sends what comes back; it knows nothing of
//! names. All `unsafe` of the program is in this folder, each block with its reason.

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

/// Octets of replies to one connection that wait to be sent: then no more of its queries are answered.
const BACKLOG: usize = 256 * 1024;
/// Time to take leave of a client in.
const LEAVE: Duration = Duration::from_secs(1);
/// Time that a connection is kept for replies that it waits for, longer than any upstream is waited for.
const UPSTREAM: Duration = Duration::from_secs(5);

/// The table that answers come from: the one thing that the two planes share.
pub type Published = Arc<ArcSwap<Zone>>;

/// Why an address cannot be served.
#[derive(Debug, Error)]
#[error("cannot listen on {address} ({transport}): {source}")]
pub struct BindError {
    /// The address that was asked for.
    pub address: SocketAddr,
    /// As metrics name it.
    pub transport: &'static str,
    /// What the system says.
    pub source: std::io::Error,
}

/// A client's address as lookups know it: IPv4 that came through an IPv6 socket is IPv4.
fn canonical(address: SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}
