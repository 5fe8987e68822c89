//! Who is asked, and how much is kept: the flags of forwarding, checked.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::cache::Bounds;
use super::reply::Ttls;
use crate::zone::Domain;

/// The file that says who resolves names for this machine (resolv.conf(5)).
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
const PORT: u16 = 53;
/// RFC 7858 section 3.1.
const TLS_PORT: u16 = 853;

/// A server to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Where it listens.
    pub socket: SocketAddr,
    /// The name that its certificate must have, if it is asked over TLS.
    pub tls: Option<Box<str>>,
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tls {
            Some(name) => write!(formatter, "tls://{}#{name}", self.socket),
            None => write!(formatter, "{}", self.socket),
        }
    }
}

/// Why text names no server.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no server; write ADDR, ADDR:PORT, tls://ADDR#NAME, the path of a resolv.conf, or none")]
pub struct NoAddress(String);

fn socket(text: &str, port: u16) -> Option<SocketAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let alone = bare.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port));
    alone
        .or_else(|| text.parse().ok())
        .filter(|address: &SocketAddr| address.port() != 0 && !address.ip().is_multicast())
}

impl FromStr for Address {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Address, NoAddress> {
        let found = match text.strip_prefix("tls://") {
            None => socket(text, PORT).map(|socket| Address { socket, tls: None }),
            Some(rest) => {
                let (address, name) = rest.split_once('#').unwrap_or((rest, ""));
                socket(address, TLS_PORT).map(|socket| {
                    // A certificate may be for an address, too.
                    let name = if name.is_empty() { socket.ip().to_string() } else { name.to_owned() };
                    Address { socket, tls: Some(name.into()) }
                })
            }
        };
        let named = |address: &Address| {
            address.tls.as_ref().is_none_or(|name| rustls::pki_types::ServerName::try_from(&**name).is_ok())
        };
        found.filter(named).ok_or_else(|| NoAddress(text.to_owned()))
    }
}

/// `--upstream`, one of its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// A server.
    Server(Address),
    /// The servers of a resolv.conf, read again when it changes.
    File(PathBuf),
    /// Nobody.
    None,
}

impl FromStr for Upstream {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Upstream, NoAddress> {
        match text {
            "none" => Ok(Upstream::None),
            path if path.starts_with(['/', '.']) => Ok(Upstream::File(path.into())),
            server => server.parse().map(Upstream::Server),
        }
    }
}

/// `--stub ZONE=ADDR[,ADDR…]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stub {
    /// Names in this zone …
    pub zone: Domain,
    /// … are asked of these.
    pub servers: Vec<Address>,
}

impl FromStr for Stub {
    type Err = String;

    fn from_str(text: &str) -> Result<Stub, String> {
        let example = "write ZONE=ADDR, such as corp.example=10.0.0.53 or 168.192.in-addr.arpa=10.0.0.53:5353";
        let (zone, servers) = text.split_once('=').ok_or_else(|| format!("'{text}' names no server; {example}"))?;
        let zone = Domain::new(zone).map_err(|error| format!("'{zone}' is no zone ({error}); {example}"))?;
        let servers = servers.split(',').map(|server| server.parse().map_err(|error: NoAddress| error.to_string()));
        Ok(Stub { zone, servers: servers.collect::<Result<_, _>>()? })
    }
}

/// The servers that the text of a resolv.conf names, in its order. What cannot be understood is stepped over, as
/// resolver libraries do.
pub fn nameservers(text: &str) -> Vec<Address> {
    let mut found: Vec<Address> = Vec::new();
    for line in text.lines() {
        let mut words = line.split(['#', ';']).next().unwrap_or("").split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        let address = words.next().and_then(|text| text.parse::<IpAddr>().ok());
        if let Some(address) = address.map(|ip| Address { socket: SocketAddr::new(ip, PORT), tls: None })
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

/// The servers of a resolv.conf.
///
/// # Errors
/// Says what is wrong with the file, and what to write instead.
pub fn read(path: &Path) -> Result<Vec<Address>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let found = nameservers(&text);
    if found.is_empty() {
        return Err(format!("{} names no nameserver", path.display()));
    }
    Ok(found)
}

/// Everything that forwarding depends on.
#[derive(Clone, Debug)]
pub struct Forwarding {
    /// `--upstream`; empty: nobody is asked, but for stub zones.
    pub upstreams: Vec<Address>,
    /// The resolv.conf among them, which may change.
    pub file: Option<PathBuf>,
    /// `--stub`, the longest zone first.
    pub stubs: Vec<Stub>,
    /// `--upstream-ca`: trusted beside nothing else; `None`: what the system trusts.
    pub authorities: Option<PathBuf>,
    /// `--max-concurrent`: questions in flight.
    pub concurrent: usize,
    /// `--cache-entries` and `--cache-bytes`.
    pub bounds: Bounds,
    /// `--cache-min-ttl` and `--cache-max-ttl`.
    pub ttls: Ttls,
    /// `--cache-stale`: how long past its time an answer may stand in for one that cannot be had.
    pub stale: Duration,
    /// `--search`: domains that hosts add to pods' search lists.
    pub search: Vec<Domain>,
}

impl Forwarding {
    /// All servers with the flag that names them.
    pub fn servers(&self) -> impl Iterator<Item = &Address> {
        self.upstreams.iter().chain(self.stubs.iter().flat_map(|stub| &stub.servers))
    }

    /// Whether anybody is asked for anything.
    pub fn is_on(&self) -> bool {
        !self.upstreams.is_empty() || !self.stubs.is_empty() || self.file.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_from_text() {
        for (text, expected) in [
            ("10.0.0.53", "10.0.0.53:53"),
            ("10.0.0.53:5353", "10.0.0.53:5353"),
            ("fd00::53", "[fd00::53]:53"),
            ("[fd00::53]", "[fd00::53]:53"),
            ("[fd00::53]:5353", "[fd00::53]:5353"),
            ("tls://9.9.9.9#dns.quad9.net", "tls://9.9.9.9:853#dns.quad9.net"),
            ("tls://[fd00::53]:8853#dns.example", "tls://[fd00::53]:8853#dns.example"),
            ("tls://9.9.9.9", "tls://9.9.9.9:853#9.9.9.9"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), expected);
        }
        for text in [
            "",
            "dns.example",
            "10.0.0.53:",
            "10.0.0.53:0",
            "10.0.0.53:70000",
            "224.0.0.1",
            "https://9.9.9.9",
            "tls://x#y",
            "tls://9.9.9.9#a b",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
        assert_eq!("none".parse(), Ok(Upstream::None));
        assert_eq!("/etc/resolv.conf".parse(), Ok(Upstream::File("/etc/resolv.conf".into())));
    }

    #[test]
    fn stubs_from_text() {
        let stub: Stub = "Corp.Example.=10.0.0.53,10.0.0.54:5353".parse().unwrap();
        assert_eq!(stub.zone.text(), "corp.example");
        assert_eq!(stub.servers.len(), 2);
        for text in ["corp.example", "=10.0.0.53", "corp.example=", "corp.example=10.0.0.53,", "a..b=10.0.0.53"] {
            assert!(text.parse::<Stub>().is_err(), "{text}");
        }
    }

    #[test]
    fn resolv_conf() {
        let text = "# by hand\nsearch a b\nnameserver 10.0.0.53 # first\n nameserver\tfd00::53\nnameserver 10.0.0.53\n\
                    nameserver somebody\nnameserver\n;nameserver 10.9.9.9\noptions ndots:5\n";
        let found: Vec<String> = nameservers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.53:53", "[fd00::53]:53"]);
    }
}
