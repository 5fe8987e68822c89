//! Open connections and their limits. At a limit, the connection that has been inactive longest is closed to make room.
//! If many connections have never sent a query, those are closed first, so that they cannot displace active clients.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::{MAX_BACKLOG, UPSTREAM_TIMEOUT};

/// Octets of unsent replies that all connections of a register may hold. Beyond it, the connection that holds some and
/// has been inactive longest is closed.
const MAX_UNSENT: usize = 16 << 20;

/// A connection's turn to send replies. Connections of one address take turns.
pub(super) type Turn = OwnedSemaphorePermit;

/// Limits on client connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `--tcp-connections`: maximum number of open connections.
    pub connections: usize,
    /// `--tcp-connections-per-address`: maximum number of open connections per client address.
    pub per_address: usize,
    /// `--tcp-idle`: timeout for receiving the next whole message, and for sending a reply.
    pub idle: Duration,
}

/// Open connections of a group of listeners that share their limits.
pub struct Clients {
    /// See [`Limits`].
    pub limits: Limits,
    open: Mutex<Open>,
    /// Notified when the last connection closes.
    emptied: Notify,
}

#[derive(Default)]
struct Open {
    next: u64,
    connections: HashMap<u64, OpenConnection>,
    /// Counts per address. Without them, each first packet of an attacker would cost a scan of all connections.
    by_address: HashMap<IpAddr, ClientState>,
    all: Count,
    /// Octets of unsent replies that connections hold.
    unsent: usize,
}

/// The connections of one address.
struct ClientState {
    count: Count,
    /// See [`Turn`].
    turn: Arc<Semaphore>,
}

impl Default for ClientState {
    fn default() -> ClientState {
        ClientState { count: Count::default(), turn: Arc::new(Semaphore::new(1)) }
    }
}

#[derive(Clone, Copy, Default)]
struct Count {
    open: usize,
    /// Connections that have not sent a whole message yet.
    unproven: usize,
}

impl Count {
    /// Whether so many connections are unproven that one of them has to be closed first. With only a few, that would be
    /// the one accepted just before, and established connections would never be closed.
    fn is_crowded(self, limit: usize) -> bool {
        self.unproven > limit / 2
    }
}

struct OpenConnection {
    from: IpAddr,
    /// Whether the client has sent a whole message yet.
    proven: bool,
    /// Time of the last whole message or reply; before the first one, the time of accepting the connection.
    last_active: Instant,
    /// Octets of replies that it holds because its client does not read them.
    unsent: usize,
    task: AbortHandle,
}

/// A connection's slot within the limits, released on drop.
pub struct ConnectionSlot {
    clients: Arc<Clients>,
    id: u64,
    pub(super) from: IpAddr,
    turn: Arc<Semaphore>,
    /// See [`Backlog`].
    pub(super) backlog: Arc<Backlog>,
    /// Number of queries in flight, for transports that answer each query in a task of its own.
    in_flight: AtomicUsize,
}

/// Replies to one connection that its client has not received yet.
#[derive(Default)]
pub(super) struct Backlog {
    octets: AtomicUsize,
    taken: Notify,
}

impl Clients {
    /// Creates an empty register with these limits.
    pub fn new(limits: Limits) -> Arc<Clients> {
        Arc::new(Clients { limits, open: Mutex::default(), emptied: Notify::new() })
    }

    /// Returns the number of open connections.
    pub fn open(&self) -> usize {
        self.lock().connections.len()
    }

    /// Waits until no connection is open.
    pub(super) async fn all_closed(&self) {
        loop {
            // Created before the check, so that a connection that closes in between is not missed.
            let emptied = self.emptied.notified();
            if self.open() == 0 {
                return;
            }
            emptied.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more connection from `from` fits without closing another.
    pub(super) fn has_room(&self, from: IpAddr) -> bool {
        let open = self.lock();
        open.all.open < self.limits.connections && open.of(from).open < self.limits.per_address
    }

    /// Returns the number of connections that have not sent a whole message yet.
    pub(super) fn unproven(&self) -> usize {
        self.lock().all.unproven
    }

    /// Makes room for a connection if needed, and spawns a task that serves it.
    pub fn admit<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        from: IpAddr,
        serve: impl FnOnce(ConnectionSlot) -> F,
    ) {
        let mut open = self.lock();
        open.make_room(from, &self.limits);
        let id = open.next;
        open.next += 1;
        let turn = open.by_address.entry(from).or_default().turn.clone();
        let (clients, backlog, in_flight) = (self.clone(), Arc::default(), AtomicUsize::new(0));
        let slot = ConnectionSlot { clients, id, from, turn, backlog, in_flight };
        let task = tokio::spawn(serve(slot)).abort_handle();
        open.connections
            .insert(id, OpenConnection { from, proven: false, last_active: Instant::now(), unsent: 0, task });
        open.count(from, |count| {
            count.open += 1;
            count.unproven += 1;
        });
    }
}

impl Open {
    fn of(&self, from: IpAddr) -> Count {
        self.by_address.get(&from).map(|state| state.count).unwrap_or_default()
    }

    fn count(&mut self, from: IpAddr, change: impl Fn(&mut Count)) {
        change(&mut self.all);
        let own = &mut self.by_address.entry(from).or_default().count;
        change(own);
        if own.open == 0 {
            self.by_address.remove(&from);
        }
    }

    fn remove(&mut self, id: u64) -> Option<OpenConnection> {
        let connection = self.connections.remove(&id)?;
        self.unsent -= connection.unsent;
        self.count(connection.from, |count| {
            count.open -= 1;
            count.unproven -= usize::from(!connection.proven);
        });
        Some(connection)
    }

    fn make_room(&mut self, from: IpAddr, limits: &Limits) {
        let own = self.of(from);
        let mine = own.open >= limits.per_address;
        if !mine && self.all.open < limits.connections {
            return;
        }
        // A client at its own limit loses one of its own connections; otherwise all connections are candidates.
        let crowded = if mine { own.is_crowded(limits.per_address) } else { self.all.is_crowded(limits.connections) };
        let candidates = self.connections.iter().filter(|(_, connection)| !mine || connection.from == from);
        let stalest = candidates
            .min_by_key(|(_, connection)| (crowded && connection.proven, connection.last_active))
            .map(|(id, _)| *id);
        if let Some(connection) = stalest.and_then(|id| self.remove(id)) {
            connection.task.abort();
        }
    }
}

impl ConnectionSlot {
    /// Returns the limits that all connections of the register share.
    pub(super) fn limits(&self) -> &Limits {
        &self.clients.limits
    }

    /// Records that the client has sent a whole message or that its reply is ready.
    pub fn record_activity(&self) {
        let open = &mut *self.clients.lock();
        let Some(connection) = open.connections.get_mut(&self.id) else { return };
        connection.last_active = Instant::now();
        if !connection.proven {
            connection.proven = true;
            open.count(self.from, |count| count.unproven -= 1);
        }
    }

    /// Waits for the connection's turn to answer and send.
    pub(super) async fn turn(&self) -> Turn {
        loop {
            // The semaphore is never closed, which would be the only error.
            if let Ok(turn) = self.turn.clone().acquire_owned().await {
                return turn;
            }
        }
    }

    /// Records that the connection holds this many octets of replies because its client does not read them. Closes the
    /// connection that has waited longest if all of them hold too much.
    pub(super) fn hold(&self, octets: usize) {
        let open = &mut *self.clients.lock();
        let Some(connection) = open.connections.get_mut(&self.id) else { return };
        open.unsent = open.unsent - connection.unsent + octets;
        connection.unsent = octets;
        while open.unsent > MAX_UNSENT {
            let holders = open.connections.iter().filter(|(_, connection)| connection.unsent > 0);
            let stalest = holders.min_by_key(|(_, connection)| connection.last_active).map(|(id, _)| *id);
            let Some(connection) = stalest.and_then(|id| open.remove(id)) else { return };
            connection.task.abort();
        }
    }

    /// Counts a query as in flight until the returned guard is dropped.
    pub(super) fn begin_query(self: &Arc<Self>) -> InFlightQuery {
        self.record_activity();
        self.in_flight.fetch_add(1, Relaxed);
        InFlightQuery(self.clone())
    }

    /// Whether any query of the connection is in flight.
    pub(super) fn has_query_in_flight(&self) -> bool {
        self.in_flight.load(Relaxed) > 0
    }

    /// Waits until the connection has been idle for too long.
    pub(super) async fn idle_timeout(&self) {
        loop {
            let deadline = self.deadline();
            if deadline <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }

    /// The time at which the connection times out if no further message arrives.
    pub(super) fn deadline(&self) -> Instant {
        let last_active = self.clients.lock().connections.get(&self.id).map(|connection| connection.last_active);
        let idle = self.limits().idle;
        last_active.map_or_else(Instant::now, |last_active| {
            last_active + idle + if self.has_query_in_flight() { UPSTREAM_TIMEOUT } else { Duration::ZERO }
        })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut open = self.clients.lock();
        open.remove(self.id);
        if open.connections.is_empty() {
            self.clients.emptied.notify_waiters();
        }
    }
}

/// Guard of a query in flight.
pub(super) struct InFlightQuery(Arc<ConnectionSlot>);

impl Drop for InFlightQuery {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

impl Backlog {
    /// Waits until the client has received enough of its replies that the backlog is below its limit.
    pub(super) async fn room(&self) {
        loop {
            // Created before the check, so that a reply that is sent in between is not missed.
            let taken = self.taken.notified();
            if self.octets.load(Relaxed) < MAX_BACKLOG {
                return;
            }
            taken.await;
        }
    }

    /// Adds a reply to the backlog until the returned bytes are dropped, after sending. Returns `None` if the backlog
    /// is full.
    pub(super) fn charge(self: &Arc<Self>, reply: impl Into<Vec<u8>>) -> Option<Bytes> {
        if self.octets.load(Relaxed) >= MAX_BACKLOG {
            return None;
        }
        let (reply, backlog) = (reply.into(), self.clone());
        self.octets.fetch_add(reply.len(), Relaxed);
        Some(Bytes::from_owner(UnsentReply { reply, backlog }))
    }
}

struct UnsentReply {
    reply: Vec<u8>,
    backlog: Arc<Backlog>,
}

impl AsRef<[u8]> for UnsentReply {
    fn as_ref(&self) -> &[u8] {
        &self.reply
    }
}

impl Drop for UnsentReply {
    fn drop(&mut self) {
        self.backlog.octets.fetch_sub(self.reply.len(), Relaxed);
        self.backlog.taken.notify_waiters();
    }
}
