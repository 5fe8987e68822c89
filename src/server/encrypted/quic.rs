//! QUIC endpoint, admission and handshake, shared by DNS over QUIC (RFC 9250) and HTTP/3.

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, EndpointConfig, Incoming, ServerConfig, TokioRuntime, TransportConfig, VarInt};
use tokio::sync::watch;

use super::certificates::Configs;
use super::{EncryptedContext, HANDSHAKE_TIMEOUT, MAX_STREAMS, Transport, doq, stopped};
use crate::server::handler::MAX_QUERY;
use crate::server::{MAX_BACKLOG, canonical};

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

fn crypto(configs: &Configs, transport: Transport) -> io::Result<Arc<QuicServerConfig>> {
    let config = if transport == Transport::H3 { &configs.h3 } else { &configs.quic };
    QuicServerConfig::try_from(config.clone()).map(Arc::new).map_err(io::Error::other)
}

/// Creates an endpoint on a socket; call this within a runtime.
///
/// # Errors
/// If the socket cannot be registered with the runtime.
pub(super) fn listen(socket: UdpSocket, transport: Transport, context: &EncryptedContext) -> io::Result<QuicListener> {
    let configs = context.configs.clone();
    let mut config = ServerConfig::with_crypto(crypto(&configs.borrow(), transport)?);
    let mut transport_config = TransportConfig::default();
    let idle = context.stream.clients.limits.idle.max(HANDSHAKE_TIMEOUT).try_into().ok();
    transport_config
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
        .transport_config(Arc::new(transport_config))
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
        (self.endpoint.clone(), self.transport.no_error())
    }

    /// Serves until the server stops.
    pub(super) async fn serve(mut self, context: Arc<EncryptedContext>) -> io::Result<()> {
        let mut stopping = context.stopping.clone();
        loop {
            tokio::select! {
                incoming = self.endpoint.accept() => match incoming {
                    Some(incoming) => self.admit(incoming, &context),
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

    fn admit(&self, incoming: Incoming, context: &Arc<EncryptedContext>) {
        let from = canonical(incoming.remote_address());
        let clients = &context.stream.clients;
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
        let (context, transport) = (context.clone(), self.transport);
        clients.admit(from, |slot| async move {
            let connecting = async { incoming.accept()?.await };
            let Some(connection) = context.handshake(connecting).await else { return };
            match transport {
                #[cfg(feature = "http3")]
                Transport::H3 => super::h3::serve(connection, slot, &context).await,
                _ => doq::serve(connection, slot, &context).await,
            }
        });
    }
}
