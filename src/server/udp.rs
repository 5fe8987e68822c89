//! UDP: one thread per worker, each with its own socket on the same address (SO_REUSEPORT).
//!
//! A worker loads the table once per batch, so that every answer of the batch comes from the same table. It allocates
//! its buffers before the first datagram.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::deferred::DeferredReplies;
use super::handler::{Handled, Handler, Message, TransportCounters};
use super::mmsg::{Batch, Unsent};
use super::neighbours::Overflow;
use super::prefetch::{self, GROUP};
use super::shed::Shedder;
use super::socket::{self, BindError};
use super::{Counters, StallDetector, canonical};
use crate::answer::{Limit, Scratch};

/// Wait after an error of the socket itself, so that a broken socket never spins.
const PAUSE: Duration = Duration::from_millis(20);
/// Maximum number of batches that a worker answers after the stop. Queued queries get an answer, but a flood cannot
/// prevent the shutdown.
const LAST_BATCHES: usize = 16;

/// The sockets of one address, one for each worker.
pub(super) struct UdpSockets {
    address: SocketAddr,
    sockets: Vec<Socket>,
    /// For each worker, the socket for replies that do not fit into the buffer of its own.
    send_only: Vec<Socket>,
}

/// The workers of one address.
pub(super) struct UdpWorkers {
    stop: Arc<AtomicBool>,
    sockets: Vec<Arc<Socket>>,
    threads: Vec<JoinHandle<()>>,
    /// Counters of each worker, then those of replies that wait for an upstream.
    pub(super) counters: Vec<Arc<Counters>>,
}

/// Binds `workers` sockets to one address. For port 0 the system chooses once, for all of them.
///
/// # Errors
/// The system's error, with the address. An address that another program listens on is an error even if that program
/// allows sharing: two servers that share an address by mistake would each get half of the queries.
pub(super) fn bind(address: SocketAddr, workers: usize) -> Result<UdpSockets, BindError> {
    let failed = BindError::new(address, "udp");
    let probe = socket::datagram(address).map_err(failed)?;
    let address = probe.local_addr().map_err(failed)?;
    drop(probe);
    // They are connected before there is a socket that receives, which would otherwise share its queries with them.
    let send_only =
        (0..workers.max(1)).map(|_| socket::send_only(address)).collect::<io::Result<_>>().map_err(failed)?;
    let sockets = (0..workers.max(1)).map(|_| socket::worker(address)).collect::<io::Result<_>>().map_err(failed)?;
    Ok(UdpSockets { address, sockets, send_only })
}

impl UdpSockets {
    /// The address, with the port that was bound.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts a thread for each socket.
    ///
    /// # Errors
    /// The system's error if a thread cannot be started.
    pub(super) fn start(self, handler: &Arc<Handler>) -> io::Result<UdpWorkers> {
        let deferred = Arc::new(Counters::default());
        let mut workers = UdpWorkers {
            stop: Arc::new(AtomicBool::new(false)),
            sockets: self.sockets.into_iter().map(Arc::new).collect(),
            threads: Vec::new(),
            counters: Vec::new(),
        };
        let seconds = self.send_only.into_iter().map(Arc::new);
        for (index, (socket, second)) in workers.sockets.iter().zip(seconds).enumerate() {
            let counters = TransportCounters { immediate: Arc::default(), deferred: deferred.clone() };
            workers.counters.push(counters.immediate.clone());
            let worker = Worker {
                socket: socket.clone(),
                is_wildcard: self.address.ip().is_unspecified(),
                handler: handler.clone(),
                counters,
                stop: workers.stop.clone(),
                scratch: Scratch::new(index as u16),
                deferred: DeferredReplies::new(socket.clone(), second.clone(), deferred.clone()),
                overflow: Overflow::new(second),
                shedder: Shedder::new(),
            };
            let thread = std::thread::Builder::new().name(format!("udp-{index}"));
            workers.threads.push(thread.spawn(move || worker.run())?);
        }
        workers.counters.push(deferred);
        Ok(workers)
    }
}

impl UdpWorkers {
    /// Has a detector watch every worker of the address that `name` stands for.
    pub(super) fn watch(&self, name: &str, detector: &mut StallDetector) {
        for (index, (socket, counters)) in self.sockets.iter().zip(&self.counters).enumerate() {
            detector.watch(format!("UDP worker {index} of {name}"), socket.clone(), counters.clone());
        }
    }

    /// Stops the workers and waits until they have answered the queries that have arrived.
    pub(super) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for socket in &self.sockets {
            // Wakes the worker. An unconnected socket returns ENOTCONN, but its readers wake up all the same.
            let _ = socket.shutdown(std::net::Shutdown::Read);
        }
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

struct Worker {
    socket: Arc<Socket>,
    is_wildcard: bool,
    handler: Arc<Handler>,
    counters: TransportCounters,
    stop: Arc<AtomicBool>,
    scratch: Scratch,
    deferred: Arc<DeferredReplies>,
    overflow: Overflow,
    shedder: Shedder,
}

impl Worker {
    fn run(mut self) {
        let mut batch = Batch::new(self.is_wildcard);
        let mut last_batches = LAST_BATCHES;
        loop {
            let stopping = self.stop.load(Ordering::Relaxed);
            match batch.receive(&self.socket, !stopping) {
                Ok(received) => {
                    let start = Instant::now();
                    self.answer(&mut batch, received, start);
                    let counters = &self.counters.immediate;
                    let overflow = &mut self.overflow;
                    let answered = batch.send(&self.socket, |reason, path, reply| {
                        let retried = if reason == Unsent::Full { overflow.send(path, reply) } else { Err(reason) };
                        if let Err(reason) = retried {
                            counters.unsent(reason);
                        }
                    });
                    counters.took(answered, start.elapsed());
                }
                Err(_) if stopping => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Blocking the worker costs nothing: the socket itself is broken, and would fail again at once.
                #[allow(clippy::disallowed_methods)]
                Err(_) => std::thread::sleep(PAUSE),
            }
            if stopping {
                last_batches -= 1;
                if last_batches == 0 {
                    return;
                }
            }
        }
    }

    /// Answers a batch from one table.
    fn answer(&mut self, batch: &mut Batch, received: usize, start: Instant) {
        let zone = self.handler.zone();
        let is_shedding = self.shedder.is_needed(received);
        for index in 0..received {
            // A single question has no other to wait with.
            if index % GROUP == 0 && received - index > 1 {
                prefetch::fetch(&zone, batch.messages(index, received));
            }
            let Some(datagram) = batch.datagram(index) else { continue };
            let (from, return_path) = (canonical(datagram.from), datagram.return_path);
            if is_shedding && !self.shedder.admits(from) {
                self.counters.immediate.shed();
                continue;
            }
            let message = Message { octets: datagram.query, from, received: start, limit: Limit::Datagram };
            let deferred = || {
                let (replies, path) = (self.deferred.clone(), return_path.turned_around());
                move |reply: &[u8]| replies.push(path, reply)
            };
            let buffers = (&mut self.scratch, &mut *datagram.reply);
            if let Handled::Replied(length) = self.handler.answer(&zone, message, buffers, &self.counters, deferred) {
                batch.reply(index, length);
            }
        }
    }
}
