//! QUIC endpoint, admission and handshake, shared by DNS over QUIC (RFC 9250) and HTTP/3.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, EndpointConfig, Incoming, ServerConfig, TokioRuntime, TransportConfig, VarInt};
use tokio::sync::watch;
use tokio::time::timeout;

use super::certificates::Configs;
use super::{EncryptedContext, HANDSHAKE_TIMEOUT, MAX_STREAMS, Transport, doq, h3, stopped};
use crate::server::clients::ConnectionSlot;
use crate::server::handler::MAX_QUERY;
use crate::server::{BindError, MAX_BACKLOG, canonical};

/// Limit on connections without a whole message so far. At the limit, new clients must prove their address first (RFC
/// 9000 section 8.1.2).
const UNPROVEN: usize = 100;

/// A QUIC endpoint and its server configuration.
pub(super) struct QuicListener {
    endpoint: Endpoint,
    config: ServerConfig,
    configs: watch::Receiver<Arc<Configs>>,
    transport: Transport,
}

/// Binds a UDP socket.
///
/// # Errors
/// The error names the address.
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

/// Creates an endpoint on a socket; call this within a runtime.
///
/// # Errors
/// If the socket cannot be registered with the runtime.
pub(super) fn listen(socket: UdpSocket, transport: Transport, shared: &EncryptedContext) -> io::Result<QuicListener> {
    let configs = shared.configs.clone();
    let mut config = ServerConfig::with_crypto(crypto(&configs.borrow(), transport)?);
    let mut carried = TransportConfig::default();
    let idle = shared.stream.clients.limits.idle.max(HANDSHAKE_TIMEOUT).try_into().ok();
    carried
        .max_concurrent_bidi_streams(MAX_STREAMS.into())
        // HTTP/3 has control and header compression streams; DNS over QUIC has no unidirectional streams.
        .max_concurrent_uni_streams(VarInt::from_u32(if transport == Transport::H3 { 8 } else { 0 }))
        .stream_receive_window(VarInt::from_u32(4 * MAX_QUERY as u32))
        .receive_window(VarInt::from_u32(16 * MAX_QUERY as u32))
        .send_window(MAX_BACKLOG as u64)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(idle)
        // RFC 9250 section 5.4 requires padding of either messages or packets; this pads the packets.
        .pad_to_mtu(transport == Transport::Quic);
    config
        .transport_config(Arc::new(carried))
        // Limits and answers depend on the client's address, so it must not change.
        .migration(false)
        .max_incoming(256)
        .incoming_buffer_size(16 * 1024)
        .incoming_buffer_size_total(1024 * 1024);
    let endpoint = Endpoint::new(EndpointConfig::default(), Some(config.clone()), socket, Arc::new(TokioRuntime))?;
    Ok(QuicListener { endpoint, config, configs, transport })
}

impl QuicListener {
    /// Returns the endpoint, and the error code for closing its connections without an error.
    pub(super) fn close_handle(&self) -> (Endpoint, VarInt) {
        let no_error = if self.transport == Transport::H3 { h3::NO_ERROR } else { doq::NO_ERROR };
        (self.endpoint.clone(), no_error)
    }

    /// Serves until the server stops.
    pub(super) async fn serve(mut self, shared: Arc<EncryptedContext>) -> io::Result<()> {
        let mut stopping = shared.stopping.clone();
        loop {
            tokio::select! {
                incoming = self.endpoint.accept() => match incoming {
                    Some(incoming) => self.admit(incoming, &shared),
                    None => return Err(io::Error::other("the QUIC socket has failed")),
                },
                Ok(()) = self.configs.changed() => {
                    let crypto = crypto(&self.configs.borrow_and_update(), self.transport)?;
                    self.config.crypto = crypto;
                    self.endpoint.set_server_config(Some(self.config.clone()));
                }
                () = stopped(&mut stopping) => {
                    self.endpoint.set_server_config(None);
                    return Ok(());
                }
            }
        }
    }

    fn admit(&self, incoming: Incoming, shared: &Arc<EncryptedContext>) {
        let from = canonical(incoming.remote_address());
        let clients = &shared.stream.clients;
        // quinn retains the full state of closed and failed connections for a while, so these count as well.
        if self.endpoint.open_connections() > 2 * clients.limits.connections {
            incoming.ignore();
            return;
        }
        // A spoofed address must not displace other connections, nor take memory beyond a few handshakes.
        if incoming.may_retry() && (!clients.has_room(from) || clients.unproven() >= UNPROVEN) {
            let _ = incoming.retry();
            return;
        }
        let (shared, transport) = (shared.clone(), self.transport);
        clients.admit(from, |slot| async move {
            let connecting = async { incoming.accept()?.await };
            let Some(connection) = shared.handshake(connecting).await else { return };
            match transport {
                Transport::H3 => h3::serve(connection, slot, &shared).await,
                _ => doq::serve(connection, slot, &shared).await,
            }
        });
    }
}

/// Returns when the connection has been idle for too long.
pub(super) async fn idle(slot: &ConnectionSlot) {
    loop {
        let deadline = slot.deadline();
        if deadline <= tokio::time::Instant::now() {
            return;
        }
        tokio::time::sleep_until(deadline).await;
    }
}

/// Waits until the client has received all of a stream, so that closing the connection does not lose the reply.
pub(super) async fn wait_received(stream: &quinn::SendStream, time: Duration) {
    let _ = timeout(time, stream.stopped()).await;
}
