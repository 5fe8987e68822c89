//! A Service in the zone: everything needed to answer queries for its names.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::facts::Protocol;
use super::names::ServiceName;
use super::rrset::Rrset;
use super::visibility::Visibility;

/// A port, with the labels of its SRV name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Port {
    /// `_name` with its length octet; empty for an unnamed port, which has no SRV name.
    pub label: Box<[u8]>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port number.
    pub number: u16,
    /// Whether an earlier port in the list has the same number: without port names, their records would be identical.
    pub repeats: bool,
}

/// A ready endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Index of its ports in [`Endpoints::groups`].
    pub group: u16,
    /// Index in [`Endpoints::groups`] of the ports of all endpoints with its name.
    pub named_group: u16,
    /// The label of its name with its length octet; `None` for the address with dashes (see [`super::dashed`]).
    pub label: Option<Box<[u8]>>,
}

/// The SRV records of an SRV name, so that a query meets only the endpoints that have such a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SrvList {
    /// `_name` with its length octet; empty in the list of all records, which is that of the Service's name.
    pub label: Box<[u8]>,
    /// Transport protocol; `None` in the list of all records.
    pub protocol: Option<Protocol>,
    /// Number of records.
    pub records: usize,
    /// Targets with equal ports.
    parts: Box<[SrvPart]>,
}

/// Consecutive SRV targets with equal ports.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SrvPart {
    /// Index in [`Endpoints::targets`] of the first one.
    from: u32,
    /// Number of targets in the list up to the end of this part.
    end: u32,
    /// Their port numbers in the list.
    numbers: Box<[u16]>,
}

/// The ready endpoints of all slices of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// All endpoints, sorted by address.
    pub all: Box<[Endpoint]>,
    /// Indices into `all` of the endpoints with their own label, sorted by label.
    pub labelled: Box<[u32]>,
    /// SRV targets of a headless Service: the index in `all` of the first endpoint with each name, sorted by the ports
    /// of all endpoints with that name.
    pub targets: Box<[u32]>,
    /// Port lists of the slices and of names that several slices share, without duplicates.
    pub groups: Box<[Box<[Port]>]>,
    /// All SRV records.
    pub srv: SrvList,
    /// SRV records by protocol and port name, sorted by these.
    pub srv_by_port: Box<[SrvList]>,
}

/// Values by protocol and port name.
type ByPort<'p, T> = BTreeMap<(Protocol, &'p [u8]), T>;

impl SrvList {
    /// Builds the lists of all records, and of those of each SRV name. `runs` are the numbers of targets in each group
    /// of `groups`, in the order of the targets.
    pub(super) fn of_groups(groups: &[Box<[Port]>], runs: &[(u16, u32)]) -> (SrvList, Box<[SrvList]>) {
        let mut all = (SrvList::default(), Vec::new());
        let mut by_port: ByPort<'_, (SrvList, Vec<SrvPart>)> = BTreeMap::new();
        let mut from = 0;
        for (group, targets) in runs {
            let ports = groups.get(usize::from(*group)).map_or(&[][..], |ports| ports);
            let mut numbers: ByPort<'_, Vec<u16>> = BTreeMap::new();
            for port in ports.iter().filter(|port| !port.label.is_empty()) {
                numbers.entry((port.protocol, &port.label)).or_default().push(port.number);
            }
            let distinct = ports.iter().filter(|port| !port.repeats).map(|port| port.number).collect();
            all.0.add(&mut all.1, from, *targets, distinct);
            for (name, numbers) in numbers {
                let (list, parts) = by_port.entry(name).or_default();
                list.add(parts, from, *targets, numbers);
            }
            from += targets;
        }
        let by_port = by_port.into_iter().map(|((protocol, label), (list, parts))| SrvList {
            label: label.into(),
            protocol: Some(protocol),
            parts: parts.into(),
            ..list
        });
        (SrvList { parts: all.1.into(), ..all.0 }, by_port.collect())
    }

    fn add(&mut self, parts: &mut Vec<SrvPart>, from: u32, targets: u32, numbers: Vec<u16>) {
        if targets == 0 || numbers.is_empty() {
            return;
        }
        self.records += targets as usize * numbers.len();
        let end = parts.last().map_or(0, |last| last.end) + targets;
        parts.push(SrvPart { from, end, numbers: numbers.into() });
    }

    /// Iterates over the targets with their port numbers, from the one at `turn` around to the one before it. Each has
    /// at least one port.
    pub fn targets<'e>(
        &'e self,
        endpoints: &'e Endpoints,
        turn: u16,
    ) -> impl Iterator<Item = (&'e Endpoint, &'e [u16])> + Clone {
        let parts = &*self.parts;
        let count = parts.len();
        let start = u32::from(turn) % parts.last().map_or(1, |last| last.end);
        let first = parts.partition_point(|part| part.end <= start);
        let begin = |index: usize| index.checked_sub(1).and_then(|before| parts.get(before)).map_or(0, |part| part.end);
        // The part that holds the start comes first, from there, and last, up to there.
        let turns = if count == 0 { 0..0 } else { 0..count + 1 };
        turns.flat_map(move |step| {
            let index = (first + step) % count;
            let part = parts.get(index);
            let from = if step == 0 { start } else { begin(index) };
            let to = if step == count { start } else { part.map_or(0, |part| part.end) };
            (from..to).filter_map(move |place| {
                let part = part?;
                let target = endpoints.targets.get((part.from + place - begin(index)) as usize)?;
                Some((endpoints.all.get(*target as usize)?, &*part.numbers))
            })
        })
    }
}

impl Endpoints {
    /// All endpoints with this address.
    #[inline]
    pub fn at(&self, address: IpAddr) -> &[Endpoint] {
        let from = self.all.partition_point(|endpoint| endpoint.address < address);
        let rest = self.all.get(from..).unwrap_or(&[]);
        rest.get(..rest.partition_point(|endpoint| endpoint.address == address)).unwrap_or(&[])
    }

    /// Indices of the endpoints with this label.
    #[inline]
    pub fn labelled(&self, label: &[u8]) -> &[u32] {
        let label_at = |index: &u32| self.all.get(*index as usize).and_then(|endpoint| endpoint.label.as_deref());
        let from = self.labelled.partition_point(|index| label_at(index) < Some(label));
        let rest = self.labelled.get(from..).unwrap_or(&[]);
        rest.get(..rest.partition_point(|index| label_at(index) == Some(label))).unwrap_or(&[])
    }

    /// The SRV records for a port name and protocol; `None` if there are none.
    pub fn srv_of(&self, label: &[u8], protocol: Protocol) -> Option<&SrvList> {
        let key = |list: &SrvList| (list.protocol, &*list.label).cmp(&(Some(protocol), label));
        self.srv_by_port.binary_search_by(key).ok().and_then(|index| self.srv_by_port.get(index))
    }

    /// Whether there are SRV records for this protocol and any port name.
    pub fn has_srv_over(&self, protocol: Protocol) -> bool {
        let first = self.srv_by_port.partition_point(|list| list.protocol < Some(protocol));
        self.srv_by_port.get(first).is_some_and(|list| list.protocol == Some(protocol))
    }

    /// The ports of a group.
    #[inline]
    pub fn ports(&self, group: u16) -> &[Port] {
        self.groups.get(usize::from(group)).map_or(&[], |ports| ports)
    }
}

/// How queries for a Service are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Service with ClusterIPs, and its own ports; an unnamed port has an empty label.
    Cluster(Box<[Port]>),
    /// A headless Service, which resolves to its endpoints.
    Headless,
    /// The external name in wire format, root included; `None` if it is invalid, which results in NXDOMAIN.
    ExternalName(Option<Box<[u8]>>),
}

/// A Service in the zone; see the module documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: Arc<ServiceName>,
    /// The callers that may see it; `None` for everyone.
    pub visibility: Option<Arc<Visibility>>,
    /// How queries for it are answered.
    pub kind: Kind,
    /// Its A records.
    pub a: Rrset,
    /// Its AAAA records.
    pub aaaa: Rrset,
    /// Its ready endpoints.
    pub endpoints: Endpoints,
}

impl Service {
    /// Whether it has records of any type. A headless Service without ready endpoints, or an invalid ExternalName, has
    /// none and does not exist for the protocol (DNS-Based Service Discovery 1.1.0 section 2.4.1), although it ends the
    /// search for a short name.
    #[inline(always)]
    pub fn answers(&self) -> bool {
        match &self.kind {
            Kind::Cluster(_) => true,
            Kind::Headless => !self.endpoints.all.is_empty(),
            Kind::ExternalName(target) => target.is_some(),
        }
    }

    /// Whether `address` is one of its ClusterIPs.
    pub fn has_cluster_ip(&self, address: IpAddr) -> bool {
        match (&self.kind, address) {
            (Kind::Cluster(_), IpAddr::V4(v4)) => {
                self.a.octets().chunks(16).any(|record| record.ends_with(&v4.octets()))
            }
            (Kind::Cluster(_), IpAddr::V6(v6)) => {
                self.aaaa.octets().chunks(28).any(|record| record.ends_with(&v6.octets()))
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_for_a_port_meets_only_the_endpoints_that_have_it() {
        let port = |name: &str, number| Port {
            label: crate::wire::label_of(name).unwrap(),
            protocol: Protocol::Tcp,
            number,
            repeats: false,
        };
        // A hostile Service: 100,000 endpoints, of which the last two have the port that is asked for.
        let common: Box<[Port]> = (1..=500).map(|number| port(&format!("_p{number}"), number)).collect();
        let rare: Box<[Port]> = [port("_rare", 7), port("_also", 8)].into();
        let groups = [common, Box::default(), rare];
        let runs = [(0, 60_000), (1, 39_998), (2, 2)];
        let (all, by_port) = SrvList::of_groups(&groups, &runs);
        let endpoint = |index: u32| Endpoint {
            address: IpAddr::from(std::net::Ipv4Addr::from_bits(index)),
            group: 0,
            named_group: 0,
            label: None,
        };
        let endpoints = Endpoints {
            all: (0..100_000).map(endpoint).collect(),
            targets: (0..100_000).collect(),
            groups: groups.into(),
            srv: all,
            srv_by_port: by_port,
            ..Endpoints::default()
        };
        let rare = endpoints.srv_of(b"\x05_rare", Protocol::Tcp).unwrap();
        for turn in [0, 1, 2, 65_535] {
            let found: Vec<(IpAddr, u16)> =
                rare.targets(&endpoints, turn).map(|(endpoint, numbers)| (endpoint.address, numbers[0])).collect();
            let mut expected = vec![(endpoint(99_998).address, 7), (endpoint(99_999).address, 7)];
            expected.rotate_left(usize::from(turn % 2));
            assert_eq!(found, expected, "turn {turn}");
        }
        assert_eq!((rare.records, endpoints.srv.records), (2, 60_000 * 500 + 4));
        // The list of all records leaves out those without ports, and wraps around.
        let from_the_end = endpoints.srv.targets(&endpoints, 60_001_u32 as u16).count();
        assert_eq!(from_the_end, 60_002);
        let mut seen: Vec<IpAddr> =
            endpoints.srv.targets(&endpoints, 12_345).map(|(endpoint, _)| endpoint.address).collect();
        assert_eq!(seen[0], endpoint(12_345).address);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 60_002);
        assert!(endpoints.srv_of(b"\x05_none", Protocol::Tcp).is_none() && !endpoints.has_srv_over(Protocol::Udp));
    }
}
