//! Opens and binds the sockets of every transport.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Socket, Type};

use super::mmsg;

/// Requested size of a UDP worker's receive and send buffers, in octets, so that a burst can wait there. The system may
/// grant less.
const QUEUE: usize = 4 << 20;
/// Length of a listener's accept queue.
const PENDING: i32 = 1024;

/// Says what to do if a privileged port is denied (ip(7), capabilities(7)).
fn cures(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; use a port above 1023, grant CAP_NET_BIND_SERVICE, or set net.ipv4.ip_unprivileged_port_start"
        }
        _ => "",
    }
}

/// An address could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({transport}): {source}{}", cures(source))]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// The transport as metrics name it.
    pub transport: &'static str,
    /// The system's error.
    pub source: io::Error,
}

impl BindError {
    /// Returns a function that adds this address and transport to a system error.
    pub(super) fn new(address: SocketAddr, transport: &'static str) -> impl Fn(io::Error) -> BindError + Copy {
        move |source| BindError { address, transport, source }
    }
}

/// Opens an unbound socket. On `[::]` it accepts IPv4 too; on any other IPv6 address it does not.
fn open(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    Ok(socket)
}

/// Binds a UDP socket that does not share its address.
pub(super) fn datagram(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = open(address, Type::DGRAM)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Binds a UDP worker's socket, which shares its address with the other workers' sockets (SO_REUSEPORT).
pub(super) fn worker(address: SocketAddr) -> io::Result<Socket> {
    let socket = open(address, Type::DGRAM)?;
    socket.set_reuse_port(true)?;
    // A failure is harmless: with a smaller buffer, only a burst loses datagrams.
    let _ = socket.set_recv_buffer_size(QUEUE);
    let _ = socket.set_send_buffer_size(QUEUE);
    if address.ip().is_unspecified() {
        mmsg::set_packet_info(&socket, address.is_ipv6())?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Opens a UDP socket that only sends from an address that workers receive on. It is connected to the discard port
/// (RFC 863) of this host, so that the system gives it none of the workers' datagrams.
pub(super) fn send_only(address: SocketAddr) -> io::Result<Socket> {
    let socket = open(address, Type::DGRAM)?;
    socket.set_reuse_port(true)?;
    let _ = socket.set_send_buffer_size(QUEUE);
    socket.bind(&address.into())?;
    let host: IpAddr = if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    let host = if address.ip().is_unspecified() { host } else { address.ip() };
    socket.connect(&SocketAddr::new(host, 9).into())?;
    Ok(socket)
}

/// Opens a non-blocking TCP listener.
///
/// # Errors
/// The system's error, with the address.
pub fn listener(address: SocketAddr) -> Result<TcpListener, BindError> {
    open_listener(address, false)
}

/// Opens `count` TCP listeners that share an address (SO_REUSEPORT), one for each thread.
///
/// # Errors
/// The system's error, with the address. An address that another program listens on is an error even if that program
/// allows sharing.
pub(super) fn listeners(address: SocketAddr, count: usize) -> Result<Vec<TcpListener>, BindError> {
    let only = listener(address)?;
    if count < 2 {
        return Ok(vec![only]);
    }
    drop(only);
    (0..count).map(|_| open_listener(address, true)).collect()
}

fn open_listener(address: SocketAddr, shared: bool) -> Result<TcpListener, BindError> {
    let listen = || -> io::Result<TcpListener> {
        let socket = open(address, Type::STREAM)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(shared)?;
        socket.bind(&address.into())?;
        socket.listen(PENDING)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    listen().map_err(BindError::new(address, "tcp"))
}
