//! Sockets. A transport passes each message to [`answer`](crate::answer::answer) and sends the reply; it knows nothing
//! about names. All of the program's `unsafe` code is in `mmsg.rs`, and each block states why it is sound.

mod clients;
mod counters;
mod deferred;
pub mod encrypted;
mod handler;
mod listen;
mod mmsg;
mod neighbours;
pub mod prefetch;
mod rate_limit;
mod shed;
mod socket;
mod stall;
pub mod tcp;
mod udp;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

pub use clients::{Clients, ConnectionSlot, Limits};
pub use counters::{CounterValues, Counters, DURATION_BOUNDS, RCODES, SIZE_BOUNDS, TYPES, UNSENT, ZONE_CLASSES};
pub use handler::{Handler, TransportCounters};
pub use listen::{Bound, EncryptedStatus, Listen, ListenError, ListenerCounters, Servers, bind};
pub use socket::{BindError, listener};
pub use stall::StallDetector;

use crate::zone::Zone;

/// Limit on the unsent replies of one connection, in bytes. At the limit, no more of its queries are answered.
const MAX_BACKLOG: usize = 192 * 1024;
/// Time allowed for closing a connection gracefully.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// Time for which open connections may finish their queries once the server stops.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Extra time for which a connection with queries in flight stays open; longer than any upstream timeout.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(5);

/// The published zone that answers come from: the only state that the two planes share.
pub type Published = Arc<ArcSwap<Zone>>;

/// Returns a client's address as lookups expect it: an IPv4-mapped IPv6 address becomes IPv4.
fn canonical(address: SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}
