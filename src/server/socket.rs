//! Opens and binds the sockets of every transport, in one way.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Socket, Type};

use super::mmsg;

/// Receive and send queue of a UDP worker's socket in octets, as far as the system allows: what a burst waits in.
const QUEUE: usize = 4 << 20;
/// Connections that wait to be accepted.
const PENDING: i32 = 1024;

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({transport}): {source}")]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// The transport as metrics name it.
    pub transport: &'static str,
    /// The system's error.
    pub source: io::Error,
}

impl BindError {
    /// Names the address and the transport of an error of the system.
    pub(super) fn new(address: SocketAddr, transport: &'static str) -> impl Fn(io::Error) -> BindError + Copy {
        move |source| BindError { address, transport, source }
    }
}

/// An unbound socket. `[::]` takes IPv4 too; any other IPv6 address does not.
fn open(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    Ok(socket)
}

/// A UDP socket that no other program shares.
pub(super) fn datagram(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = open(address, Type::DGRAM)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// A UDP worker's socket, which shares its address with those of the other workers (SO_REUSEPORT).
pub(super) fn worker(address: SocketAddr) -> io::Result<Socket> {
    let socket = open(address, Type::DGRAM)?;
    socket.set_reuse_port(true)?;
    // A smaller queue only loses bursts.
    let _ = socket.set_recv_buffer_size(QUEUE);
    let _ = socket.set_send_buffer_size(QUEUE);
    if address.ip().is_unspecified() {
        mmsg::set_packet_info(&socket, address.is_ipv6())?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// A non-blocking TCP listener.
///
/// # Errors
/// The system's error, with the address.
pub fn listener(address: SocketAddr) -> Result<TcpListener, BindError> {
    let listen = || -> io::Result<TcpListener> {
        let socket = open(address, Type::STREAM)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(PENDING)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    listen().map_err(BindError::new(address, "tcp"))
}
