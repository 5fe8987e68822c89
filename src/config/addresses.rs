//! Addresses of this machine: those advertised to clients, and those that no upstream may have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Config;

/// Returns the addresses of `ns.dns.DOMAIN`: `--advertise`, else the bound ones. Link-local and loopback addresses are
/// left out if there are others. A wildcard is replaced by the source address of the default route.
pub fn advertised(config: &Config, bound: &[SocketAddr]) -> Vec<IpAddr> {
    if !config.advertise.is_empty() {
        return config.advertise.clone();
    }
    let mut all: Vec<IpAddr> = Vec::new();
    for address in bound.iter().map(SocketAddr::ip) {
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
pub fn reaches(address: SocketAddr, bound: SocketAddr) -> bool {
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
