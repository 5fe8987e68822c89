//! A client for UDP, TCP and HTTP that sends a message and waits for the reply.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// Timeout for a reply. It is longer than the server waits for upstreams.
pub const TIMEOUT: Duration = Duration::from_secs(6);

/// Returns a UDP socket that is connected to a server.
pub fn udp_socket(server: SocketAddr) -> UdpSocket {
    let any = if server.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    udp_socket_from(any, server)
}

/// Returns a UDP socket that is bound to this client address and connected to a server.
pub fn udp_socket_from(client: IpAddr, server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((client, 0)).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket
}

/// Sends a message and receives one.
pub fn exchange(socket: &UdpSocket, query: &[u8]) -> io::Result<Vec<u8>> {
    socket.send(query)?;
    let mut reply = vec![0; 65_535];
    let length = socket.recv(&mut reply)?;
    reply.truncate(length);
    Ok(reply)
}

/// Queries a server over UDP.
pub fn udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    exchange(&udp_socket(server), query)
}

/// Opens a TCP connection to a server.
pub fn tcp_stream(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    stream
}

/// Prefixes a message with its length (RFC 1035 section 4.2.2).
pub fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

/// Reads a length and the message that follows it.
pub fn read_framed(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// Queries a server over a new TCP connection.
pub fn tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = tcp_stream(server);
    stream.write_all(&framed(query))?;
    read_framed(&mut stream)
}

/// Sends a GET request over HTTP; returns the whole response, without chunks (RFC 9112 section 7.1).
pub fn http_get(server: SocketAddr, path: &str) -> String {
    http_get_with(server, path, "")
}

/// As [`http_get`], with these lines in the header, each ending in a line break.
pub fn http_get_with(server: SocketAddr, path: &str, lines: &str) -> String {
    let mut stream = TcpStream::connect(server).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {server}\r\n{lines}Connection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let Some((head, mut chunks)) = text.split_once("\r\n\r\n").filter(|(head, _)| head.contains("chunked")) else {
        return text;
    };
    let mut whole = format!("{head}\r\n\r\n");
    while let Some((length, rest)) = chunks.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        whole += &rest[..length];
        chunks = rest[length..].strip_prefix("\r\n").unwrap();
    }
    whole
}

/// Returns an address of this host that is not loopback, if it has one.
pub fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // Connecting a UDP socket sends nothing; it only chooses a route. 192.0.2.0/24 is for documentation (RFC 5737).
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_loopback())
}
