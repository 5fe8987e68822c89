//! Addresses of this server: those advertised to clients, and those that no upstream may have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;

use crate::forward::Forwarding;
use crate::server::encrypted::{ListenUrl, Transport};

/// An upstream that is this server itself, so that forwarded queries would loop forever.
#[derive(Debug, Error)]
#[error(
    "upstream {upstream}{file} is this server itself (it listens on {listens}), so queries would loop; use --upstream \
     ADDR (in a sidecar, the cluster's DNS) or --upstream none"
)]
pub struct UpstreamLoop {
    /// The upstream.
    pub upstream: String,
    /// ` of FILE` if the upstream comes from a resolv.conf, else empty.
    pub file: String,
    /// The listening address that it reaches.
    pub listens: SocketAddr,
}

/// Checks that no upstream is one of the bound addresses.
///
/// # Errors
/// An upstream is this server. The error names it.
pub fn refuse_loops(
    forwarding: &Forwarding,
    plain: &[SocketAddr],
    encrypted: &[ListenUrl],
) -> Result<(), UpstreamLoop> {
    // Upstreams are never queried over QUIC. A QUIC listener uses a UDP port, so another server may serve TLS on the
    // TCP port of the same number.
    let streams = encrypted.iter().filter(|url| matches!(url.transport, Transport::Tls | Transport::Https));
    for server in forwarding.servers() {
        let streams = streams.clone().map(|url| &url.address).filter(|_| server.tls.is_some());
        if let Some(listens) = plain.iter().chain(streams).find(|bound| reaches(server.socket, **bound)) {
            let file = forwarding.file.as_ref().map(|file| format!(" from {}", file.display()));
            let file = file.unwrap_or_default();
            return Err(UpstreamLoop { upstream: server.to_string(), file, listens: *listens });
        }
    }
    Ok(())
}

/// Returns the addresses of `ns.dns.DOMAIN`: `--advertise`, else the bound ones. Link-local and loopback addresses are
/// left out if there are others. A wildcard is replaced by the source address of the default route.
pub fn advertised(advertise: &[IpAddr], plain: &[SocketAddr], encrypted: &[ListenUrl]) -> Vec<IpAddr> {
    if !advertise.is_empty() {
        return advertise.to_vec();
    }
    // The address is looked up for plain DNS; encrypted listeners count only if there is no plain one.
    let encrypted = encrypted.iter().map(|url| &url.address).filter(|_| plain.is_empty());
    let mut all: Vec<IpAddr> = Vec::new();
    for address in plain.iter().chain(encrypted).map(SocketAddr::ip) {
        match address {
            IpAddr::V4(v4) if v4.is_unspecified() => {
                all.push(source_address(Ipv4Addr::new(192, 0, 2, 1).into()).unwrap_or(Ipv4Addr::LOCALHOST.into()))
            }
            IpAddr::V6(v6) if v6.is_unspecified() => {
                let v4 = source_address(Ipv4Addr::new(192, 0, 2, 1).into()).unwrap_or(Ipv4Addr::LOCALHOST.into());
                all.push(v4);
                all.push(
                    source_address(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into())
                        .unwrap_or(Ipv6Addr::LOCALHOST.into()),
                );
            }
            address => all.push(address),
        }
    }
    let local = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
    };
    if all.iter().any(|ip| !local(ip)) {
        all.retain(|ip| !local(ip));
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// Returns whether a packet to `address` reaches a socket that is bound to `bound`.
fn reaches(address: SocketAddr, bound: SocketAddr) -> bool {
    let (ip, own) = (address.ip().to_canonical(), bound.ip().to_canonical());
    // `[::]` accepts IPv4 as well.
    let family = own.is_ipv6() && own.is_unspecified() || ip.is_ipv4() == own.is_ipv4();
    // Only an address of this machine can be bound.
    let here = || ip.is_loopback() || ip.is_unspecified() || std::net::UdpSocket::bind((ip, 0)).is_ok();
    address.port() == bound.port() && family && (ip == own || own.is_unspecified() && here())
}

/// Returns the source address of packets to `other`. Connecting a UDP socket sends nothing; `other` is a documentation
/// address (RFC 5737, RFC 3849), which the default route covers.
fn source_address(other: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if other.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind((any, 0)).ok()?;
    socket.connect((other, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}
