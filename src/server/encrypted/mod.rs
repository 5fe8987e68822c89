//! Encrypted transports with the same answers: TLS (RFC 7858), HTTPS (RFC 8484), QUIC (RFC 9250) and HTTP/3. They run
//! on one thread of their own, so that handshakes and floods do not slow down plain DNS.
//!
//! # Design
//! This module uses tokio-rustls, hyper, quinn and h3 directly instead of hickory-server. The latter encodes records
//! itself, so replies would differ from those over TCP. It also answers malformed messages itself, performs one QUIC
//! handshake at a time, closes a QUIC connection after 100 queries, and does not limit connections.

#[cfg(feature = "http3")]
mod bounded_quinn;
mod certificates;
pub mod doq;
#[cfg(feature = "http3")]
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
use std::time::Duration;

use hyper::body::Bytes;
use jiff::Timestamp;
use quinn::VarInt;
use tokio::sync::watch;
use tokio::time::timeout;

use super::clients::ConnectionSlot;
use super::handler::NoReply;
use super::socket::{self, BindError};
use super::tcp::StreamContext;
use super::{CLOSE_TIMEOUT, Clients, DRAIN_TIMEOUT, Handler, Limits, ListenError, TransportCounters};
use crate::watched::FolderWatch;
use crate::wire::{PADDING, has_option, pad};
use certificates::{Configs, Contents};

pub use certificates::{CertificateError, Files};

/// Timeout of a handshake, and of receiving the rest of a request that has begun.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of concurrent requests per connection; RFC 9113 section 6.5.2 recommends no fewer.
const MAX_STREAMS: u32 = 100;

/// An encrypted DNS transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// DNS over TLS (RFC 7858).
    Tls,
    /// DNS over HTTPS (RFC 8484): HTTP/2 and HTTP/1.1.
    Https,
    /// DNS over QUIC (RFC 9250).
    Quic,
    /// DNS over HTTPS with HTTP/3 (RFC 9114).
    H3,
}

impl Transport {
    /// Returns the name used as the scheme in `--listen` and as a label in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Transport::Tls => "tls",
            Transport::Https => "https",
            Transport::Quic => "quic",
            Transport::H3 => "h3",
        }
    }

    /// The code that closes a QUIC connection without an error (RFC 9250 section 4.3, RFC 9114 section 8.1).
    fn no_error(self) -> VarInt {
        VarInt::from_u32(if self == Transport::H3 { 0x100 } else { 0 })
    }
}

/// Listen address of an encrypted transport, such as `tls://[::]:853`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenUrl {
    /// Transport, written as the scheme.
    pub transport: Transport,
    /// Address and port.
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
        let (scheme, address) = text.split_once("://").ok_or("missing scheme")?;
        let known = [Transport::Tls, Transport::Https, Transport::Quic, Transport::H3];
        let transport = known.into_iter().find(|transport| transport.name() == scheme);
        let transport = transport.ok_or("unknown scheme; supported schemes are tls, https, quic and h3")?;
        if transport == Transport::H3 && !cfg!(feature = "http3") {
            return Err("this program was built without HTTP/3; supported schemes are tls, https and quic");
        }
        let address = address.parse().map_err(|_| "invalid address; write ADDR:PORT, as in tls://[::]:853")?;
        Ok(ListenUrl { transport, address })
    }
}

/// Listen addresses and certificate files of the encrypted transports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptedOptions {
    /// Values of `--listen` that have a scheme.
    pub listen: Vec<ListenUrl>,
    /// Certificate, key and client authorities.
    pub files: Files,
}

/// Statistics of the certificate and of handshakes.
#[derive(Debug, Default)]
pub struct EncryptedStats {
    /// Expiry of the certificate, in seconds since 1970.
    pub not_after: AtomicI64,
    /// Reloads that failed because the changed files were unusable.
    pub rejected: AtomicU64,
    /// Handshakes that failed or timed out.
    pub handshakes_failed: AtomicU64,
}

enum Socket {
    Stream(TcpListener),
    Datagram(UdpSocket),
}

/// Bound sockets that are not served yet, and the TLS configurations for them.
pub(super) struct EncryptedSockets {
    sockets: Vec<(ListenUrl, Socket)>,
    files: Files,
    watched: Option<FolderWatch>,
    contents: Contents,
    configs: Configs,
}

/// Handle to the running encrypted transports.
pub(super) struct EncryptedServers {
    /// Counters of each listener.
    pub counters: Vec<(ListenUrl, TransportCounters)>,
    /// Open connections of all listeners.
    pub clients: Arc<Clients>,
    /// See [`EncryptedStats`].
    pub stats: Arc<EncryptedStats>,
    /// Serving thread; it exits once `stopping` is true and the connections are drained.
    pub thread: JoinHandle<()>,
}

/// State that all connections of a listener share.
struct EncryptedContext {
    stream: Arc<StreamContext>,
    configs: watch::Receiver<Arc<Configs>>,
    stats: Arc<EncryptedStats>,
    stopping: watch::Receiver<bool>,
}

impl EncryptedContext {
    /// Returns the reply to one query, for transports that answer each query in a task of its own.
    ///
    /// # Errors
    /// Returns the reason for not replying.
    async fn reply(&self, slot: &Arc<ConnectionSlot>, message: &[u8]) -> Result<Bytes, NoReply> {
        let _in_flight = slot.begin_query();
        slot.backlog.room().await;
        let mut reply = self.stream.handler.reply(&self.stream.counters, slot.from, message).await?;
        if has_option(message, PADDING) {
            pad(&mut reply);
        }
        // The idle timeout restarts when the reply is ready.
        slot.record_activity();
        // Many upstream replies may arrive at once for a client that reads none of them.
        slot.backlog.charge(reply).ok_or(NoReply::Busy)
    }

    /// Completes a handshake; `None` if it fails, times out, or the server stops first.
    async fn handshake<T, E>(&self, handshake: impl Future<Output = Result<T, E>>) -> Option<T> {
        let mut stopping = self.stopping.clone();
        let result = tokio::select! {
            result = timeout(HANDSHAKE_TIMEOUT, handshake) => result,
            () = stopped(&mut stopping) => return None,
        };
        let done = result.ok().and_then(Result::ok);
        if done.is_none() {
            self.stats.handshakes_failed.fetch_add(1, Relaxed);
        }
        done
    }
}

/// Returns when the server starts to stop.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Reads the files and binds the addresses.
///
/// # Errors
/// The error names the unusable file or address.
pub(super) fn bind(options: &EncryptedOptions) -> Result<EncryptedSockets, ListenError> {
    let watched = options.files.watch();
    let contents = options.files.read()?;
    let configs = options.files.configs(&contents, Timestamp::now())?;
    let mut sockets = Vec::new();
    for url in &options.listen {
        let failed = BindError::new(url.address, url.transport.name());
        let socket = match url.transport {
            Transport::Tls | Transport::Https => {
                Socket::Stream(socket::listener(url.address).map_err(|error| failed(error.source))?)
            }
            Transport::Quic | Transport::H3 => Socket::Datagram(socket::datagram(url.address).map_err(failed)?),
        };
        let address = match &socket {
            Socket::Stream(listener) => listener.local_addr(),
            Socket::Datagram(socket) => socket.local_addr(),
        };
        sockets.push((ListenUrl { address: address.map_err(failed)?, ..*url }, socket));
    }
    Ok(EncryptedSockets { sockets, files: options.files.clone(), watched, contents, configs })
}

impl EncryptedSockets {
    /// Returns the bound addresses, with the ports that the system chose.
    pub(super) fn urls(&self) -> Vec<ListenUrl> {
        self.sockets.iter().map(|(url, _)| *url).collect()
    }

    /// Serves until `stopping` is true and open connections have finished their queries in flight.
    ///
    /// # Errors
    /// If the runtime or the thread cannot be created.
    pub(super) fn start(
        self,
        handler: &Arc<Handler>,
        limits: Limits,
        stopping: watch::Receiver<bool>,
    ) -> io::Result<EncryptedServers> {
        let clients = Clients::new(limits);
        let stats = Arc::new(EncryptedStats::default());
        stats.not_after.store(self.configs.not_after, Relaxed);
        let (sender, configs) = watch::channel(Arc::new(self.configs));
        let listeners: Vec<_> = self
            .sockets
            .into_iter()
            .map(|(url, socket)| {
                let counters = TransportCounters::default();
                let stream =
                    StreamContext { handler: handler.clone(), counters, clients: clients.clone(), is_encrypted: true };
                let context = EncryptedContext {
                    stream: Arc::new(stream),
                    configs: configs.clone(),
                    stats: stats.clone(),
                    stopping: stopping.clone(),
                };
                (url, socket, Arc::new(context))
            })
            .collect();
        let counters = listeners.iter().map(|(url, _, context)| (*url, context.stream.counters.clone())).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let open = clients.clone();
        let following = self.files.follow(self.watched, self.contents, sender, stats.clone());
        let serving = async move {
            tokio::spawn(following);
            let (mut tasks, mut endpoints) = (tokio::task::JoinSet::new(), Vec::new());
            for (url, socket, context) in listeners {
                match (url.transport, socket) {
                    (Transport::Tls, Socket::Stream(listener)) => {
                        tasks.spawn(async move { (url, tls::serve(listener, context).await) });
                    }
                    (_, Socket::Stream(listener)) => {
                        tasks.spawn(async move { (url, https::serve(listener, context).await) });
                    }
                    (transport, Socket::Datagram(socket)) => match quic::listen(socket, transport, &context) {
                        Ok(listener) => {
                            endpoints.push(listener.close_handle());
                            tasks.spawn(async move { (url, listener.serve(context).await) });
                        }
                        Err(error) => tracing::error!(listener = %url, %error, "encrypted listener failed to start"),
                    },
                }
            }
            while let Some(ended) = tasks.join_next().await {
                if let Ok((url, Err(error))) = ended {
                    tracing::error!(listener = %url, %error, "encrypted listener failed");
                }
            }
            let _ = timeout(DRAIN_TIMEOUT, open.all_closed()).await;
            // Send the final packets: a client that learns of the close does not wait for its own timeout.
            for (endpoint, no_error) in endpoints {
                endpoint.close(no_error, b"");
                let _ = timeout(Duration::from_millis(300), endpoint.wait_idle()).await;
            }
        };
        let thread = std::thread::Builder::new().name("encrypted".to_owned()).spawn(move || {
            runtime.block_on(serving);
            // A blocking read may hang on a network file system; do not wait for it.
            runtime.shutdown_background();
        })?;
        Ok(EncryptedServers { counters, clients, stats, thread })
    }
}
