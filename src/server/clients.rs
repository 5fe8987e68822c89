//! Connections that are open, and the limits on them. Where a limit is reached, the one that has been of no use for longest
//! makes room. Where many have never been of any use, these go first: they take no place from those who ask.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::{BACKLOG, UPSTREAM};

/// What clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `--tcp-connections`: in all.
    pub connections: usize,
    /// `--tcp-connections-per-address`: of one client address.
    pub per_address: usize,
    /// `--tcp-idle`: time for the next whole message, and for taking a reply.
    pub idle: Duration,
}

/// Connections of some listeners.
pub struct Clients {
    /// See [`Limits`].
    pub limits: Limits,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next: u64,
    connections: HashMap<u64, OpenConnection>,
    /// How many each address has: counting them one by one would be work for whoever sends first packets.
    by_address: HashMap<IpAddr, Count>,
    all: Count,
}

#[derive(Clone, Copy, Default)]
struct Count {
    open: usize,
    /// Those that have not sent a whole message yet.
    unproven: usize,
}

impl Count {
    /// Whether there are so many that never asked anything that one of them makes room. With a few it would be the one who
    /// came just before, and whoever has a place would keep it.
    fn is_crowded(self, limit: usize) -> bool {
        self.unproven > limit / 2
    }
}

struct OpenConnection {
    from: IpAddr,
    /// Whether it has sent a whole message yet.
    proven: bool,
    /// When it last did, or was accepted.
    useful: Instant,
    task: AbortHandle,
}

/// The place that a connection takes, until it is dropped.
pub(super) struct ConnectionSlot {
    clients: Arc<Clients>,
    id: u64,
    pub(super) from: IpAddr,
    /// See [`Backlog`].
    pub(super) backlog: Arc<Backlog>,
    /// For transports whose questions have tasks of their own: those that are being answered.
    asking: AtomicUsize,
}

/// Replies to one connection that its client has not taken yet.
#[derive(Default)]
pub(super) struct Backlog {
    octets: AtomicUsize,
    taken: Notify,
}

impl Clients {
    /// Within these limits.
    pub fn new(limits: Limits) -> Arc<Clients> {
        Arc::new(Clients { limits, open: Mutex::default() })
    }

    /// How many are open now.
    pub fn open(&self) -> usize {
        self.lock().connections.len()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more of `from` takes nothing from others.
    pub(super) fn has_room(&self, from: IpAddr) -> bool {
        let open = self.lock();
        open.all.open < self.limits.connections && open.of(from).open < self.limits.per_address
    }

    /// Connections that have not sent a whole message yet.
    pub(super) fn unproven(&self) -> usize {
        self.lock().all.unproven
    }

    /// Makes room for a connection, and serves it in a task of its own.
    pub(super) fn admit<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        from: IpAddr,
        serve: impl FnOnce(ConnectionSlot) -> F,
    ) {
        let mut open = self.lock();
        open.make_room(from, &self.limits);
        let id = open.next;
        open.next += 1;
        let place =
            ConnectionSlot { clients: self.clone(), id, from, backlog: Arc::default(), asking: AtomicUsize::new(0) };
        let task = tokio::spawn(serve(place)).abort_handle();
        open.connections.insert(id, OpenConnection { from, proven: false, useful: Instant::now(), task });
        open.count(from, |count| {
            count.open += 1;
            count.unproven += 1;
        });
    }
}

impl Open {
    fn of(&self, from: IpAddr) -> Count {
        self.by_address.get(&from).copied().unwrap_or_default()
    }

    fn count(&mut self, from: IpAddr, change: impl Fn(&mut Count)) {
        change(&mut self.all);
        let own = self.by_address.entry(from).or_default();
        change(own);
        if own.open == 0 {
            self.by_address.remove(&from);
        }
    }

    fn remove(&mut self, id: u64) -> Option<OpenConnection> {
        let connection = self.connections.remove(&id)?;
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
        // At its own limit a client loses one of its own, else whoever is least useful.
        let crowded = if mine { own.is_crowded(limits.per_address) } else { self.all.is_crowded(limits.connections) };
        let candidates = self.connections.iter().filter(|(_, connection)| !mine || connection.from == from);
        let stalest = candidates
            .min_by_key(|(_, connection)| (crowded && connection.proven, connection.useful))
            .map(|(id, _)| *id);
        if let Some(connection) = stalest.and_then(|id| self.remove(id)) {
            connection.task.abort();
        }
    }
}

impl ConnectionSlot {
    /// What all of these connections keep to.
    pub(super) fn limits(&self) -> &Limits {
        &self.clients.limits
    }

    /// It has sent a whole message.
    pub(super) fn was_useful(&self) {
        let open = &mut *self.clients.lock();
        let Some(connection) = open.connections.get_mut(&self.id) else { return };
        connection.useful = Instant::now();
        if !connection.proven {
            connection.proven = true;
            open.count(self.from, |count| count.unproven -= 1);
        }
    }

    /// Notes a question that is being answered, until what is returned is dropped.
    pub(super) fn asks(self: &Arc<Self>) -> Asking {
        self.was_useful();
        self.asking.fetch_add(1, Relaxed);
        Asking(self.clone())
    }

    /// Whether any of its questions is being answered.
    pub(super) fn is_asking(&self) -> bool {
        self.asking.load(Relaxed) > 0
    }

    /// When it has been idle for too long, if nothing more comes.
    pub(super) fn deadline(&self) -> Instant {
        let useful = self.clients.lock().connections.get(&self.id).map(|connection| connection.useful);
        let idle = self.limits().idle;
        useful.map_or_else(Instant::now, |useful| {
            useful + idle + if self.is_asking() { UPSTREAM } else { Duration::ZERO }
        })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.clients.lock().remove(self.id);
    }
}

/// A question that is being answered.
pub(super) struct Asking(Arc<ConnectionSlot>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.asking.fetch_sub(1, Relaxed);
    }
}

impl Backlog {
    /// Waits until the client has taken so much of its replies that it may have more.
    pub(super) async fn room(&self) {
        loop {
            let taken = self.taken.notified();
            if self.octets.load(Relaxed) < BACKLOG {
                return;
            }
            taken.await;
        }
    }

    /// A reply that is part of the backlog until it is dropped, which is when the client has it; `None` if there is no room.
    pub(super) fn keep(self: &Arc<Self>, reply: impl Into<Vec<u8>>) -> Option<Bytes> {
        if self.octets.load(Relaxed) >= BACKLOG {
            return None;
        }
        let (reply, backlog) = (reply.into(), self.clone());
        self.octets.fetch_add(reply.len(), Relaxed);
        Some(Bytes::from_owner(Owed { reply, backlog }))
    }
}

struct Owed {
    reply: Vec<u8>,
    backlog: Arc<Backlog>,
}

impl AsRef<[u8]> for Owed {
    fn as_ref(&self) -> &[u8] {
        &self.reply
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.backlog.octets.fetch_sub(self.reply.len(), Relaxed);
        self.backlog.taken.notify_waiters();
    }
}
