//! QUIC, for DNS over it (RFC 9250) and for HTTP/3: endpoint, admission and handshake.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, EndpointConfig, Incoming, ServerConfig, TokioRuntime, TransportConfig, VarInt};
use tokio::sync::watch;
use tokio::time::timeout;

use super::certificates::Configs;
use super::{EncryptedContext, HANDSHAKE, STREAMS, Transport, doq, end, h3};
use crate::server::clients::ConnectionSlot;
use crate::server::handler::QUERY;
use crate::server::{BACKLOG, BindError, canonical};

/// Connections that have not asked anything yet: where there are more, clients have to prove their address before they get
/// one (RFC 9000 section 8.1.2).
const UNPROVEN: usize = 100;

/// An endpoint that nobody serves yet.
pub(super) struct QuicListener {
    endpoint: Endpoint,
    config: ServerConfig,
    configs: watch::Receiver<Arc<Configs>>,
    transport: Transport,
}

/// Binds a socket.
///
/// # Errors
/// Names the address.
pub(super) fn bind(address: SocketAddr) -> Result<UdpSocket, BindError> {
    let bound = || -> io::Result<UdpSocket> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::DGRAM, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        socket.bind(&address.into())?;
        Ok(socket.into())
    };
    bound().map_err(|source| BindError { address, transport: "quic", source })
}

fn crypto(configs: &Configs, transport: Transport) -> io::Result<Arc<QuicServerConfig>> {
    let config = if transport == Transport::H3 { &configs.h3 } else { &configs.quic };
    QuicServerConfig::try_from(config.clone()).map(Arc::new).map_err(io::Error::other)
}

/// Makes an endpoint of a socket. Needs a runtime.
///
/// # Errors
/// When the system does not let the runtime wait for the socket.
pub(super) fn listen(socket: UdpSocket, transport: Transport, shared: &EncryptedContext) -> io::Result<QuicListener> {
    let configs = shared.configs.clone();
    let mut config = ServerConfig::with_crypto(crypto(&configs.borrow(), transport)?);
    let mut carried = TransportConfig::default();
    let idle = shared.stream.clients.limits.idle.max(HANDSHAKE).try_into().ok();
    carried
        .max_concurrent_bidi_streams(STREAMS.into())
        // Control streams and header compression of HTTP/3; DNS over QUIC has none.
        .max_concurrent_uni_streams(VarInt::from_u32(if transport == Transport::H3 { 8 } else { 0 }))
        .stream_receive_window(VarInt::from_u32(4 * QUERY as u32))
        .receive_window(VarInt::from_u32(16 * QUERY as u32))
        .send_window(BACKLOG as u64)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(idle)
        // RFC 9250 section 5.4 demands padding, of messages or of packets; these are the packets.
        .pad_to_mtu(transport == Transport::Quic);
    config
        .transport_config(Arc::new(carried))
        // Limits and answers go by the address that a client had when it came.
        .migration(false)
        .max_incoming(256)
        .incoming_buffer_size(16 * 1024)
        .incoming_buffer_size_total(1024 * 1024);
    let endpoint = Endpoint::new(EndpointConfig::default(), Some(config.clone()), socket, Arc::new(TokioRuntime))?;
    Ok(QuicListener { endpoint, config, configs, transport })
}

impl QuicListener {
    /// The endpoint, and the code that says that nothing is wrong.
    pub(super) fn at_the_end(&self) -> (Endpoint, VarInt) {
        let no_error = if self.transport == Transport::H3 { h3::NO_ERROR } else { doq::NO_ERROR };
        (self.endpoint.clone(), no_error)
    }

    /// Serves until the server ends.
    pub(super) async fn serve(mut self, shared: Arc<EncryptedContext>) -> io::Result<()> {
        let mut stopping = shared.stopping.clone();
        loop {
            tokio::select! {
                incoming = self.endpoint.accept() => match incoming {
                    Some(incoming) => self.admit(incoming, &shared),
                    None => return Err(io::Error::other("its socket is of no use any more")),
                },
                Ok(()) = self.configs.changed() => {
                    let crypto = crypto(&self.configs.borrow_and_update(), self.transport)?;
                    self.config.crypto = crypto;
                    self.endpoint.set_server_config(Some(self.config.clone()));
                }
                () = end(&mut stopping) => {
                    self.endpoint.set_server_config(None);
                    return Ok(());
                }
            }
        }
    }

    fn admit(&self, incoming: Incoming, shared: &Arc<EncryptedContext>) {
        let from = canonical(incoming.remote_address());
        let clients = &shared.stream.clients;
        // Those that made room, or came to nothing, are remembered for a while by quinn, each with all that it had.
        if self.endpoint.open_connections() > 2 * clients.limits.connections {
            incoming.ignore();
            return;
        }
        // An address that may be made up takes no place from others, and no memory beyond a few handshakes.
        if incoming.may_retry() && (!clients.has_room(from) || clients.unproven() >= UNPROVEN) {
            let _ = incoming.retry();
            return;
        }
        let (shared, transport) = (shared.clone(), self.transport);
        clients.admit(from, |place| async move {
            let connecting = async { incoming.accept()?.await };
            let Some(connection) = shared.handshake(connecting).await else { return };
            match transport {
                Transport::H3 => h3::serve(connection, place, &shared).await,
                _ => doq::serve(connection, place, &shared).await,
            }
        });
    }
}

/// Returns when the connection has been idle for too long.
pub(super) async fn idle(place: &ConnectionSlot) {
    loop {
        let deadline = place.deadline();
        if deadline <= tokio::time::Instant::now() {
            return;
        }
        tokio::time::sleep_until(deadline).await;
    }
}

/// Waits until the client has all of a stream, so that the end of the connection does not cost it the reply.
pub(super) async fn taken(stream: &quinn::SendStream, time: Duration) {
    let _ = timeout(time, stream.stopped()).await;
}
