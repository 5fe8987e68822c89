//! All listeners of a server: `bind` opens their sockets, [`Bound::start`] serves them, [`Servers::stop`] drains them.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;

use thiserror::Error;
use tokio::sync::watch;

use super::encrypted::{self, CertificateError, EncryptedOptions, EncryptedSockets, EncryptedStats, ListenUrl};
use super::handler::TransportCounters;
use super::socket::{self, BindError};
use super::tcp::{self, StreamContext};
use super::udp::{self, UdpSockets, UdpWorkers};
use super::{Clients, Counters, Handler, Limits, StallDetector};

/// The addresses to listen on, and the limits on connections.
#[derive(Clone, Debug)]
pub struct Listen {
    /// `--listen` without a scheme: addresses for UDP and TCP.
    pub plain: Vec<SocketAddr>,
    /// `--listen` with a scheme, and the certificate files.
    pub encrypted: Option<EncryptedOptions>,
    /// `--workers`: UDP workers of each address, and TCP threads.
    pub workers: usize,
    /// Limits that apply to TCP connections, and separately to those of all encrypted transports together.
    pub limits: Limits,
}

/// An error that prevents listening.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The certificate, its key or the client authorities are unusable.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// An address cannot be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// The bound sockets of every listener, before they are served.
pub struct Bound {
    /// The UDP sockets of each address, and a TCP listener for each thread.
    plain: Vec<(UdpSockets, Vec<TcpListener>)>,
    encrypted: Option<EncryptedSockets>,
    limits: Limits,
}

/// The counters of one thread of a listener.
pub struct ListenerCounters {
    /// The `server` label in metrics: `dns://ADDRESS` for UDP and TCP, as in CoreDNS.
    pub server: String,
    /// The `proto` label in metrics.
    pub transport: &'static str,
    /// Counters that one thread writes and any thread may read.
    pub counters: Arc<Counters>,
}

/// Open connections and statistics of the encrypted transports.
pub struct EncryptedStatus {
    /// Open connections of all encrypted transports.
    pub clients: Arc<Clients>,
    /// Certificate and handshakes.
    pub stats: Arc<EncryptedStats>,
}

/// All listeners and the threads that serve them.
pub struct Servers {
    /// Counters of every listener's threads.
    pub listeners: Vec<ListenerCounters>,
    /// Open TCP connections.
    pub clients: Arc<Clients>,
    /// The encrypted transports, if there are any.
    pub encrypted: Option<EncryptedStatus>,
    /// Finds UDP workers that are stuck.
    pub detector: StallDetector,
    stop: watch::Sender<bool>,
    workers: Vec<UdpWorkers>,
    threads: Vec<JoinHandle<()>>,
}

/// Opens the sockets of every listener.
///
/// # Errors
/// An address cannot be bound, or a certificate file is unusable. The error names it.
pub fn bind(listen: &Listen) -> Result<Bound, ListenError> {
    let plain = listen.plain.iter().map(|address| bind_plain(*address, listen.workers));
    let plain = plain.collect::<Result<_, _>>()?;
    let encrypted = listen.encrypted.as_ref().map(encrypted::bind).transpose()?;
    Ok(Bound { plain, encrypted, limits: listen.limits })
}

/// Binds UDP and TCP sockets to one address. With port 0, another program may take the port that the system chose for
/// the first socket before the others are bound, so a failure is retried with a new port.
fn bind_plain(address: SocketAddr, workers: usize) -> Result<(UdpSockets, Vec<TcpListener>), BindError> {
    let mut attempts = if address.port() == 0 { 16 } else { 1 };
    loop {
        attempts -= 1;
        let bound = udp::bind(address, workers).and_then(|udp| {
            let tcp = socket::listeners(udp.address(), workers)?;
            Ok((udp, tcp))
        });
        match bound {
            Err(_) if attempts > 0 => {}
            bound => return bound,
        }
    }
}

impl Bound {
    /// Returns the addresses of UDP and TCP, with the ports that were bound.
    pub fn plain(&self) -> Vec<SocketAddr> {
        self.plain.iter().map(|(udp, _)| udp.address()).collect()
    }

    /// Returns the addresses of the encrypted transports, with the ports that were bound.
    pub fn encrypted(&self) -> Vec<ListenUrl> {
        self.encrypted.as_ref().map(EncryptedSockets::urls).unwrap_or_default()
    }

    /// Starts the threads that serve the listeners.
    ///
    /// # Errors
    /// The system's error if a thread or runtime cannot be created.
    pub fn start(self, handler: &Arc<Handler>) -> io::Result<Servers> {
        let addresses = self.plain();
        let (stop, stopping) = watch::channel(false);
        let clients = Clients::new(self.limits);
        let (mut listeners, mut workers, mut threads) = (Vec::new(), Vec::new(), Vec::new());
        let mut tcp: Vec<Vec<TcpListener>> = Vec::new();
        let mut detector = StallDetector::default();
        for (udp, of_address) in self.plain {
            let server = format!("dns://{}", udp.address());
            let started = udp.start(handler)?;
            let of_worker = |counters: &Arc<Counters>| ListenerCounters::new(&server, "udp", counters);
            listeners.extend(started.counters.iter().map(of_worker));
            started.watch(&server, &mut detector);
            workers.push(started);
            for (thread, listener) in of_address.into_iter().enumerate() {
                tcp.resize_with(tcp.len().max(thread + 1), Vec::new);
                tcp[thread].push(listener);
            }
        }
        // Each thread serves TCP for all addresses. Its counters carry the first address.
        for (thread, of_thread) in tcp.into_iter().enumerate() {
            let Some(address) = addresses.first() else { continue };
            let counters = TransportCounters::default();
            listeners.extend(ListenerCounters::of_transport(&format!("dns://{address}"), "tcp", &counters));
            let clients = clients.clone();
            let context = StreamContext { handler: handler.clone(), counters, clients, is_encrypted: false };
            threads.push(tcp::start(of_thread, Arc::new(context), stopping.clone(), format!("tcp-{thread}"))?);
        }
        let encrypted = self.encrypted.map(|sockets| sockets.start(handler, self.limits, stopping)).transpose()?;
        let encrypted = encrypted.map(|started| {
            for (url, counters) in &started.counters {
                listeners.extend(ListenerCounters::of_transport(&url.to_string(), url.transport.name(), counters));
            }
            threads.push(started.thread);
            EncryptedStatus { clients: started.clients, stats: started.stats }
        });
        Ok(Servers { listeners, clients, encrypted, detector, stop, workers, threads })
    }
}

impl ListenerCounters {
    fn new(server: &str, transport: &'static str, counters: &Arc<Counters>) -> ListenerCounters {
        ListenerCounters { server: server.to_owned(), transport, counters: counters.clone() }
    }

    fn of_transport(server: &str, transport: &'static str, counters: &TransportCounters) -> [ListenerCounters; 2] {
        [&counters.immediate, &counters.deferred].map(|counters| ListenerCounters::new(server, transport, counters))
    }
}

impl Servers {
    /// Stops listening, answers the queries that have arrived, and waits a limited time for open connections to finish.
    pub fn stop(self) {
        self.stop.send_replace(true);
        for workers in self.workers {
            workers.stop();
        }
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}
