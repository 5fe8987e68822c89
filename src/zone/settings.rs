//! Settings, which do not change while the program runs: the flags in the form that lookups need.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::wire::{self, NameError};

use super::names::NamespaceName;
use super::rrset::Rrset;
use super::{Seed, hash};

/// `--pod-names`: which `a-b-c-d.ns.pod.Z` exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodNames {
    /// None.
    #[default]
    Off,
    /// Every address, if the namespace exists.
    Any,
    /// Addresses of live pods of that namespace.
    Verified,
}

/// A cluster domain, such as `cluster.local`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Wire format, lower case, root included.
    pub wire: Box<[u8]>,
    /// Number of labels.
    pub labels: usize,
}

impl Domain {
    /// Parses a domain from text.
    ///
    /// # Errors
    /// If the text is not a valid name, or is the root.
    pub fn new(text: &str) -> Result<Domain, NameError> {
        let wire = wire::name_from_text(text)?;
        let labels = wire::Name::parse(&wire, 0)?.labels();
        if labels == 0 {
            return Err(NameError::Empty);
        }
        Ok(Domain { wire, labels })
    }

    /// The domain as text, without a trailing dot.
    pub fn text(&self) -> String {
        wire::text_of(&self.wire)
    }
}

/// A block of addresses. An IPv4 block is stored as IPv4-mapped IPv6 addresses (RFC 4291 section 2.5.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    first: u128,
    /// Prefix length in bits, of 128.
    prefix: u8,
}

impl Cidr {
    /// Whether the block contains the address (see [`bits`]).
    #[inline]
    pub fn contains(&self, address: u128) -> bool {
        (address ^ self.first) & mask(self.prefix) == 0
    }

    /// Whether the blocks have any address in common.
    pub fn overlaps(&self, other: &Cidr) -> bool {
        (self.first ^ other.first) & mask(self.prefix.min(other.prefix)) == 0
    }

    /// Creates the block of the addresses that share the first `prefix` bits (of 128) with `first`.
    pub fn new(first: u128, prefix: u8) -> Cidr {
        Cidr { first: first & mask(prefix), prefix: prefix.min(128) }
    }

    /// The first address, as 128 bits.
    pub fn first(&self) -> u128 {
        self.first
    }

    /// Prefix length in bits, of 128.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }
}

/// The error for text that is not a block of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a network; write ADDRESS/PREFIX, such as 10.96.0.0/16 or fd00::/48")]
pub struct InvalidCidr(String);

impl std::str::FromStr for Cidr {
    type Err = InvalidCidr;

    fn from_str(text: &str) -> Result<Cidr, InvalidCidr> {
        let refuse = || InvalidCidr(text.to_owned());
        let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let address: IpAddr = address.parse().map_err(|_| refuse())?;
        let width: u8 = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
                digits.parse().map_err(|_| refuse())?
            }
            Some(_) => return Err(refuse()),
            None => width,
        };
        if length > width {
            return Err(refuse());
        }
        Ok(Cidr::new(bits(address), 128 - width + length))
    }
}

fn mask(prefix: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)
}

/// An address as 128 bits, with IPv4 mapped into IPv6, so that both families share one type of key.
#[inline]
pub fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The inverse of [`bits`].
#[inline]
pub fn address_of(bits: u128) -> IpAddr {
    Ipv6Addr::from_bits(bits).to_canonical()
}

/// One block of `--callers`.
#[derive(Clone, Debug)]
pub struct CallerBlock {
    /// Addresses of the callers.
    pub block: Cidr,
    /// Their namespace.
    pub namespace: NamespaceName,
}

/// The pod that the server runs in.
#[derive(Clone, Debug)]
pub struct OwnPod {
    /// Its namespace.
    pub namespace: NamespaceName,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// All settings that an answer may depend on.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Key of all label hashes.
    pub seed: Seed,
    /// `--cluster-domain`, at least one. Targets are written under the first unless the question is under another.
    pub domains: Vec<Domain>,
    /// `--ttl` in seconds.
    pub ttl: u32,
    /// `--udp-payload`: the largest datagram sent, in octets.
    pub udp_payload: u16,
    /// `--advertise`: IPv4 addresses of `ns.dns.Z`.
    pub advertise_v4: Rrset,
    /// `--advertise`: IPv6 addresses of `ns.dns.Z`.
    pub advertise_v6: Rrset,
    /// The server's pod, unless `--advertise` is set: the ClusterIPs of the Service that leads to it are the addresses of
    /// `ns.dns.Z`, once that Service is known.
    pub own_pod: Option<OwnPod>,
    /// `--reverse-cidr`: blocks in which an address without a name does not exist.
    pub reverse: Vec<Cidr>,
    /// `--pod-names`.
    pub pod_names: PodNames,
    /// `--watch-namespace`: the only namespace whose Services are known.
    pub watched: Option<NamespaceName>,
    /// Whether queries for names outside the cluster are forwarded.
    pub forwarding: bool,
    /// Whether names outside the cluster that are not forwarded do not exist (`--other-names nxdomain`), instead of being
    /// refused.
    pub others_are_missing: bool,
    /// If not empty, forwards only names under these domains (`--stub` without `--upstream`).
    pub forwarded_only: Vec<Domain>,
    /// Zones with their own upstream, forwarded even if names of their kind are otherwise not.
    pub stubs: Vec<Domain>,
    /// `--complete-search`.
    pub complete_search: bool,
    /// `--allow-from`; if empty, every client is admitted.
    pub allow_from: Vec<Cidr>,
    /// The key of server cookies (RFC 9018 section 3).
    pub cookie_secret: [u8; 16],
    /// Blocks whose reverse names are never forwarded, except to stub zones (RFC 6303 section 4, RFC 7793).
    pub empty_zones: Vec<Cidr>,
    /// `--callers`, longest prefix first.
    pub callers: Vec<CallerBlock>,
    /// `--namespace`: the namespace of callers that no other source identifies.
    pub namespace: Option<NamespaceName>,
    /// `--database-kinds`: labels with their length octets.
    pub database_kinds: Vec<Box<[u8]>>,
    /// `--application-prefix`, without a length octet, lower case.
    pub application_prefix: Box<[u8]>,
    /// `--application-callers all`: the bare names of applications resolve for every caller.
    pub application_callers_all: bool,
    /// `--allow-tld-namespace`: labels with their length octets.
    pub allowed_tlds: Vec<Box<[u8]>>,
}

/// Default of `--database-kinds`.
pub const DATABASE_KINDS: &[&str] = &[
    "mysql",
    "mariadb",
    "percona",
    "postgres",
    "postgresql",
    "mongodb",
    "mongo",
    "redis",
    "influxdb",
    "elasticsearch",
    "memcached",
    "rabbitmq",
];

/// Default of `--application-prefix`.
pub const APPLICATION_PREFIX: &str = "ix-";

/// Blocks of addresses that have no names on the internet: RFC 6303 section 4, RFC 7793.
const EMPTY_ZONES: [&str; 19] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "192.0.2.0/24",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "255.255.255.255/32",
    "100.64.0.0/10",
    "::/128",
    "::1/128",
    "fd00::/8",
    "fe80::/12",
    "fe90::/12",
    "fea0::/12",
    "feb0::/12",
    "2001:db8::/32",
];

/// Returns an unguessable secret.
fn random_secret() -> [u8; 16] {
    let mut secret = [0; 16];
    // A failure means that the system has no randomness, without which TLS and message ids cannot work either.
    let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut secret);
    secret
}

impl Settings {
    /// Creates the default settings for `domains`: TTL 5 s, datagrams of 1,232 octets, no forwarding.
    pub fn new(domains: Vec<Domain>) -> Settings {
        Settings {
            seed: Seed::random(),
            domains,
            ttl: 5,
            udp_payload: 1232,
            advertise_v4: Rrset::default(),
            advertise_v6: Rrset::default(),
            own_pod: None,
            reverse: Vec::new(),
            pod_names: PodNames::Off,
            watched: None,
            forwarding: false,
            others_are_missing: false,
            forwarded_only: Vec::new(),
            stubs: Vec::new(),
            complete_search: false,
            allow_from: Vec::new(),
            cookie_secret: random_secret(),
            empty_zones: EMPTY_ZONES.iter().filter_map(|text| text.parse().ok()).collect(),
            callers: Vec::new(),
            namespace: None,
            database_kinds: DATABASE_KINDS.iter().filter_map(|kind| wire::label_of(kind).ok()).collect(),
            application_prefix: APPLICATION_PREFIX.as_bytes().into(),
            application_callers_all: false,
            allowed_tlds: Vec::new(),
        }
    }

    /// Sets the addresses of `ns.dns.Z`. Set `ttl` before: the records are encoded with it.
    pub fn advertise(&mut self, addresses: &[IpAddr]) {
        let v4 = addresses.iter().filter_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        });
        let v6 = addresses.iter().filter_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(*v6),
        });
        self.advertise_v4 = Rrset::a(&v4.collect::<Vec<Ipv4Addr>>(), self.ttl);
        self.advertise_v6 = Rrset::aaaa(&v6.collect::<Vec<Ipv6Addr>>(), self.ttl);
    }

    /// Converts a namespace's name to the form that lookups use.
    ///
    /// # Errors
    /// If the text is not a valid label.
    pub fn namespace_name(&self, text: &str) -> Result<NamespaceName, NameError> {
        let label = wire::label_of(text)?;
        Ok(NamespaceName::new(self.seed, &label))
    }

    /// The hash of a label that does not carry its own hash.
    #[inline(always)]
    pub fn hash(&self, label: &[u8]) -> u64 {
        self.seed.label(label)
    }

    /// The hash of an address.
    #[inline(always)]
    pub fn hash_address(&self, address: u128) -> u64 {
        hash::address(address)
    }

    /// The first cluster domain, under which targets are written by default, as text.
    pub fn first_domain(&self) -> String {
        self.domains.first().map(|domain| wire::text_of(&domain.wire)).unwrap_or_default()
    }

    /// Whether only this server answers for a name: it is under a cluster domain and, with `--watch-namespace`, in that
    /// namespace.
    pub fn is_ours(&self, name: &wire::Name) -> bool {
        let above = self.domains.iter().find_map(|domain| name.below(&domain.wire, domain.labels));
        let is_watched = |above: usize, own: &NamespaceName| {
            above >= 2 && name.label(above - 1) == b"\x03svc" && name.label(above - 2) == own.label()
        };
        above.is_some_and(|above| self.watched.as_ref().is_none_or(|own| is_watched(above, own)))
    }

    /// Whether queries for this name, which is outside the cluster, are forwarded.
    pub fn is_forwarded(&self, name: &wire::Name) -> bool {
        self.forwarding && (self.forwarded_only.is_empty() || lies_in(name, &self.forwarded_only))
    }

    /// Whether a name belongs to a `--stub` zone.
    pub fn is_stub(&self, name: &wire::Name) -> bool {
        lies_in(name, &self.stubs)
    }

    /// The TTL of SOA records: no negative answer is cached longer than five minutes.
    #[inline(always)]
    pub fn negative_ttl(&self) -> u32 {
        self.ttl.min(300)
    }
}

fn lies_in(name: &wire::Name, zones: &[Domain]) -> bool {
    zones.iter().any(|zone| name.below(&zone.wire, zone.labels).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_parse_and_contain_their_addresses() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("0.0.0.0/0", "255.1.1.1", "::1"),
            ("fd00::/48", "fd00::1:2", "fd00:0:1::"),
            ("10.1.2.3/24", "10.1.2.200", "10.1.3.0"),
        ] {
            let block: Cidr = text.parse().unwrap();
            assert!(block.contains(bits(inside.parse().unwrap())), "{inside} in {text}");
            assert!(!block.contains(bits(outside.parse().unwrap())), "{outside} not in {text}");
        }
        for text in ["", "10.0.0.0/33", "10.0.0/8", "fd00::/129", "10.0.0.0/-1", "10.0.0.0/+8", "web"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }
}
