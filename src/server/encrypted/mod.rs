//! The same answers where nobody on the wire can read or change them: TLS (RFC 7858), HTTPS (RFC 8484), QUIC (RFC 9250) and
//! HTTP/3, on one thread of their own. Handshakes and floods cost that thread's time and nobody else's.

mod bounded_quinn;
mod certificates;
pub mod doq;
mod h3;
pub mod http;
mod https;
mod quic;
mod tls;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use jiff::Timestamp;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::timeout;

use super::clients::ConnectionSlot;
use super::handler::NoReply;
use super::{BindError, Clients, Handler, LEAVE, Limits, TransportCounters, tcp};
use crate::watched::Watched;
use certificates::{Configs, Contents};

pub use certificates::{CertificateError, Files};

/// Time for a handshake, and for the rest of a request that has begun.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Requests of one connection at a time; RFC 9113 section 6.5.2 wants no fewer.
const STREAMS: u32 = 100;

/// What carries questions and answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// DNS over TLS (RFC 7858).
    Tls,
    /// DNS over HTTPS (RFC 8484): HTTP/2 and HTTP/1.1.
    Https,
    /// DNS over QUIC (RFC 9250).
    Quic,
    /// DNS over HTTPS, by HTTP/3 (RFC 9114).
    H3,
}

impl Transport {
    /// As it is written in `--listen` and told in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Tls => "tls",
            Transport::Https => "https",
            Transport::Quic => "quic",
            Transport::H3 => "h3",
        }
    }
}

/// Where an encrypted transport is listened for: `tls://[::]:853`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenUrl {
    /// By which.
    pub transport: Transport,
    /// On which address.
    pub address: SocketAddr,
}

impl fmt::Display for ListenUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.transport.name(), self.address)
    }
}

impl FromStr for ListenUrl {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<ListenUrl, &'static str> {
        let (scheme, address) = text.split_once("://").ok_or("it has no scheme")?;
        let known = [Transport::Tls, Transport::Https, Transport::Quic, Transport::H3];
        let transport = known.into_iter().find(|transport| transport.name() == scheme);
        let transport = transport.ok_or("the schemes are tls, https, quic and h3")?;
        let address = address.parse().map_err(|_| "write ADDR:PORT behind the scheme, such as tls://[::]:853")?;
        Ok(ListenUrl { transport, address })
    }
}

/// What is listened for, and who the server says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptedOptions {
    /// `--listen` with a scheme.
    pub listen: Vec<ListenUrl>,
    /// Certificate and key.
    pub files: Files,
}

/// Why encrypted transports cannot be served.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The certificate, its key, or the authorities of clients.
    #[error(transparent)]
    Files(#[from] CertificateError),
    /// An address.
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// What is counted besides answers.
#[derive(Debug, Default)]
pub struct EncryptedStats {
    /// The end of the certificate's time, in seconds since 1970.
    pub not_after: AtomicI64,
    /// Changes of the files that would not do.
    pub unfit: AtomicU64,
    /// Handshakes that came to nothing.
    pub handshakes_failed: AtomicU64,
}

enum Socket {
    Stream(TcpListener),
    Datagram(UdpSocket),
}

/// Sockets that nobody serves yet, and what handshakes are made with.
pub struct EncryptedSockets {
    sockets: Vec<(ListenUrl, Socket)>,
    files: Files,
    watched: Vec<Watched>,
    contents: Contents,
    configs: Configs,
}

/// Encrypted transports that are served.
pub struct EncryptedServers {
    /// What each listener counts.
    pub tallies: Vec<(ListenUrl, TransportCounters)>,
    /// Connections of all of them.
    pub clients: Arc<Clients>,
    /// See [`EncryptedStats`].
    pub stats: Arc<EncryptedStats>,
    /// Ends once `stopping` is true and connections have finished.
    pub thread: JoinHandle<()>,
}

/// What every connection of a listener works with.
struct EncryptedContext {
    stream: Arc<tcp::StreamContext>,
    configs: watch::Receiver<Arc<Configs>>,
    stats: Arc<EncryptedStats>,
    stopping: watch::Receiver<bool>,
}

impl EncryptedContext {
    /// The reply to one question of a connection whose questions have tasks of their own.
    ///
    /// # Errors
    /// Why there is none.
    async fn reply(&self, place: &Arc<ConnectionSlot>, message: &[u8]) -> Result<Bytes, NoReply> {
        let _asking = place.asks();
        place.backlog.room().await;
        let reply = self.stream.handler.reply(&self.stream.tally, place.from, message).await?;
        // Its time begins when it has its answer.
        place.was_useful();
        // What upstreams said may come all at once, to a client that takes nothing.
        place.backlog.keep(reply).ok_or(NoReply::Busy)
    }

    /// What client and server have come to terms on, in time and before the server ends.
    async fn handshake<T, E>(&self, shaking: impl Future<Output = Result<T, E>>) -> Option<T> {
        let mut stopping = self.stopping.clone();
        let shaken = tokio::select! {
            shaken = timeout(HANDSHAKE, shaking) => shaken,
            () = end(&mut stopping) => return None,
        };
        let done = shaken.ok().and_then(Result::ok);
        if done.is_none() {
            self.stats.handshakes_failed.fetch_add(1, Relaxed);
        }
        done
    }
}

/// Returns when the server ends.
async fn end(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Reads the files and binds the addresses.
///
/// # Errors
/// Names the file or the address.
pub fn open(options: &EncryptedOptions) -> Result<EncryptedSockets, OpenError> {
    let watched = options.files.watch();
    let contents = options.files.read()?;
    let configs = options.files.configs(&contents, Timestamp::now())?;
    let mut sockets = Vec::new();
    for endpoint in &options.listen {
        let socket = match endpoint.transport {
            Transport::Tls | Transport::Https => tcp::bind(endpoint.address).map(Socket::Stream),
            Transport::Quic | Transport::H3 => quic::bind(endpoint.address).map(Socket::Datagram),
        };
        let socket = socket.map_err(|error| BindError { transport: endpoint.transport.name(), ..error })?;
        let address = match &socket {
            Socket::Stream(listener) => listener.local_addr(),
            Socket::Datagram(socket) => socket.local_addr(),
        };
        let address = address.unwrap_or(endpoint.address);
        sockets.push((ListenUrl { address, ..*endpoint }, socket));
    }
    Ok(EncryptedSockets { sockets, files: options.files.clone(), watched, contents, configs })
}

impl EncryptedSockets {
    /// What is bound, with real ports.
    pub fn endpoints(&self) -> Vec<ListenUrl> {
        self.sockets.iter().map(|(endpoint, _)| *endpoint).collect()
    }

    /// Serves until `stopping` is true; then connections have `drain` to finish what they have begun.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        self,
        handler: &Arc<Handler>,
        limits: Limits,
        stopping: watch::Receiver<bool>,
        drain: Duration,
    ) -> io::Result<EncryptedServers> {
        let clients = Clients::new(limits);
        let stats = Arc::new(EncryptedStats::default());
        stats.not_after.store(self.configs.not_after, Relaxed);
        let (sender, configs) = watch::channel(Arc::new(self.configs));
        let listeners: Vec<_> = self
            .sockets
            .into_iter()
            .map(|(endpoint, socket)| {
                let stream = tcp::StreamContext {
                    handler: handler.clone(),
                    tally: TransportCounters::default(),
                    clients: clients.clone(),
                };
                let shared = EncryptedContext {
                    stream: Arc::new(stream),
                    configs: configs.clone(),
                    stats: stats.clone(),
                    stopping: stopping.clone(),
                };
                (endpoint, socket, Arc::new(shared))
            })
            .collect();
        let tallies = listeners.iter().map(|(endpoint, _, shared)| (*endpoint, shared.stream.tally.clone())).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let open = clients.clone();
        let following = self.files.follow(self.watched, self.contents, sender, stats.clone());
        let serving = async move {
            tokio::spawn(following);
            let (mut tasks, mut endpoints) = (tokio::task::JoinSet::new(), Vec::new());
            for (endpoint, socket, shared) in listeners {
                match (endpoint.transport, socket) {
                    (Transport::Tls, Socket::Stream(listener)) => {
                        tasks.spawn(async move { (endpoint, tls::serve(listener, shared).await) });
                    }
                    (_, Socket::Stream(listener)) => {
                        tasks.spawn(async move { (endpoint, https::serve(listener, shared).await) });
                    }
                    (transport, Socket::Datagram(socket)) => match quic::listen(socket, transport, &shared) {
                        Ok(listener) => {
                            endpoints.push(listener.at_the_end());
                            tasks.spawn(async move { (endpoint, listener.serve(shared).await) });
                        }
                        Err(error) => tracing::error!(%endpoint, %error, "it is not served"),
                    },
                }
            }
            while let Some(ended) = tasks.join_next().await {
                if let Ok((endpoint, Err(error))) = ended {
                    tracing::error!(%endpoint, %error, "it is not served any more");
                }
            }
            let deadline = Instant::now() + drain;
            while open.open() > 0 && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            // The last packets: who is told that a connection is closed does not wait for it.
            for (endpoint, no_error) in endpoints {
                endpoint.close(no_error, b"");
                let _ = timeout(Duration::from_millis(300), endpoint.wait_idle()).await;
            }
        };
        let thread = std::thread::Builder::new().name("encrypted".to_owned()).spawn(move || {
            runtime.block_on(serving);
            // Not waiting for a file system that hangs.
            runtime.shutdown_background();
        })?;
        Ok(EncryptedServers { tallies, clients, stats, thread })
    }
}
