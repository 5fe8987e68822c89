//! The checked settings of forwarding: upstreams, stub zones, and the bounds of the cache.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::cache::Bounds;
use super::reply::Ttls;
use crate::zone::Domain;

/// The file that lists this host's nameservers (resolv.conf(5)).
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
const PORT: u16 = 53;
/// RFC 7858 section 3.1.
const TLS_PORT: u16 = 853;

/// The address of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// IP address and port.
    pub socket: SocketAddr,
    /// The name that its certificate must be valid for; `Some` if it is queried over TLS.
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

/// Text that is not a valid server address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a server; use ADDR, ADDR:PORT, tls://ADDR#NAME, the path of a resolv.conf, or none")]
pub struct InvalidAddress(String);

fn socket(text: &str, port: u16) -> Option<SocketAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let alone = bare.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port));
    alone
        .or_else(|| text.parse().ok())
        .filter(|address: &SocketAddr| address.port() != 0 && !address.ip().is_multicast())
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Address, InvalidAddress> {
        let found = match text.strip_prefix("tls://") {
            None => socket(text, PORT).map(|socket| Address { socket, tls: None }),
            Some(rest) => {
                let (address, name) = rest.split_once('#').unwrap_or((rest, ""));
                socket(address, TLS_PORT).map(|socket| {
                    // A certificate may also be issued for an IP address.
                    let name = if name.is_empty() { socket.ip().to_string() } else { name.to_owned() };
                    Address { socket, tls: Some(name.into()) }
                })
            }
        };
        let named = |address: &Address| {
            address.tls.as_ref().is_none_or(|name| rustls::pki_types::ServerName::try_from(&**name).is_ok())
        };
        found.filter(named).ok_or_else(|| InvalidAddress(text.to_owned()))
    }
}

/// One value of `--upstream`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// One server.
    Server(Address),
    /// The servers of a resolv.conf, which is reloaded when it changes.
    File(PathBuf),
    /// No upstreams.
    None,
}

impl FromStr for Upstream {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Upstream, InvalidAddress> {
        match text {
            "none" => Ok(Upstream::None),
            path if path.starts_with(['/', '.']) => Ok(Upstream::File(path.into())),
            server => server.parse().map(Upstream::Server),
        }
    }
}

/// `--stub ZONE=ADDR[,ADDR…][,into-cluster]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stub {
    /// The zone whose names are forwarded.
    pub zone: Domain,
    /// The servers that queries for it go to.
    pub servers: Vec<Address>,
    /// Whether a CNAME in their replies may lead to a name of the cluster.
    pub into_cluster: bool,
}

/// The word in `--stub` that allows its servers' CNAMEs to lead into the cluster.
const INTO_CLUSTER: &str = "into-cluster";

impl FromStr for Stub {
    type Err = String;

    fn from_str(text: &str) -> Result<Stub, String> {
        let example = "use ZONE=ADDR, such as corp.example=10.0.0.53 or 168.192.in-addr.arpa=10.0.0.53:5353";
        let (zone, servers) = text.split_once('=').ok_or_else(|| format!("'{text}' has no server; {example}"))?;
        let zone = Domain::new(zone).map_err(|error| format!("'{zone}' is not a zone name ({error}); {example}"))?;
        let into_cluster = servers.split(',').any(|word| word == INTO_CLUSTER);
        let servers = servers.split(',').filter(|word| *word != INTO_CLUSTER);
        let servers = servers.map(|server| server.parse().map_err(|error: InvalidAddress| error.to_string()));
        let servers: Vec<Address> = servers.collect::<Result<_, _>>()?;
        if servers.is_empty() {
            return Err(format!("'{text}' has no server; {example}"));
        }
        Ok(Stub { zone, servers, into_cluster })
    }
}

/// Returns the nameservers that the text of a resolv.conf lists, in order. Lines that cannot be parsed are skipped, as
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

/// Reads the nameservers of a resolv.conf.
///
/// # Errors
/// A message with the path, if the file cannot be read or lists no nameserver.
pub fn read(path: &Path) -> Result<Vec<Address>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let found = nameservers(&text);
    if found.is_empty() {
        return Err(format!("{} lists no nameservers", path.display()));
    }
    Ok(found)
}

/// Values of `--rebind-protection`: what happens if an upstream answers with a private address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RebindProtection {
    /// Nothing: upstreams of companies do that.
    #[default]
    Off,
    /// It is counted and logged.
    Log,
    /// The name is refused, too.
    On,
}

/// The settings of forwarding.
#[derive(Clone, Debug)]
pub struct Forwarding {
    /// `--upstream`; if empty, only stub zones are forwarded.
    pub upstreams: Vec<Address>,
    /// The resolv.conf that `upstreams` were read from, if any; it is watched for changes.
    pub file: Option<PathBuf>,
    /// `--stub`, the longest zone first.
    pub stubs: Vec<Stub>,
    /// `--upstream-ca`: the only trusted CAs for upstreams; `None` means the system's trust store.
    pub authorities: Option<PathBuf>,
    /// `--max-concurrent`: maximum number of queries in flight.
    pub concurrent: usize,
    /// `--cache-entries` and `--cache-bytes`.
    pub bounds: Bounds,
    /// `--cache-min-ttl` and `--cache-max-ttl`.
    pub ttls: Ttls,
    /// `--cache-stale`: how long after its TTL a cached reply may be served if upstreams fail.
    pub stale: Duration,
    /// `--search`: domains that hosts append to pods' search lists.
    pub search: Vec<Domain>,
    /// `--rebind-protection`.
    pub rebind: RebindProtection,
}

impl Forwarding {
    /// Returns the servers of all upstreams and stub zones.
    pub fn servers(&self) -> impl Iterator<Item = &Address> {
        self.upstreams.iter().chain(self.stubs.iter().flat_map(|stub| &stub.servers))
    }

    /// Whether any name is forwarded.
    pub fn is_on(&self) -> bool {
        !self.upstreams.is_empty() || !self.stubs.is_empty() || self.file.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_addresses_are_parsed() {
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
    fn stub_zones_are_parsed() {
        let stub: Stub = "Corp.Example.=10.0.0.53,10.0.0.54:5353".parse().unwrap();
        assert_eq!(stub.zone.text(), "corp.example");
        assert_eq!((stub.servers.len(), stub.into_cluster), (2, false));
        let stub: Stub = "corp.example=10.0.0.53,into-cluster".parse().unwrap();
        assert_eq!((stub.servers.len(), stub.into_cluster), (1, true));
        for text in [
            "corp.example",
            "=10.0.0.53",
            "corp.example=",
            "corp.example=10.0.0.53,",
            "a..b=10.0.0.53",
            "corp.example=into-cluster",
        ] {
            assert!(text.parse::<Stub>().is_err(), "{text}");
        }
    }

    #[test]
    fn resolv_conf_lists_its_nameservers_once_and_in_order() {
        let text = "# comment\nsearch a b\nnameserver 10.0.0.53 # first\n nameserver\tfd00::53\nnameserver 10.0.0.53\n\
                    nameserver dns.example\nnameserver\n;nameserver 10.9.9.9\noptions ndots:5\n";
        let found: Vec<String> = nameservers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.53:53", "[fd00::53]:53"]);
    }
}
