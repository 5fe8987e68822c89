//! The records of a reply, written from a resolved name and the query type.

use std::net::IpAddr;

use crate::resolve::{EndpointMatch, NoTrace, Node, Outcome, PortLabels, Space, resolve};
use crate::wire::{HEADER_LEN, Name, Reply, Section, flags, rcode, rtype};
use crate::zone::dashed::Dashed;
use crate::zone::rrset::{A_LEN, AAAA_LEN, HOSTMASTER, NAME_SERVER, OWNER, record_head};
use crate::zone::{Endpoint, Kind, LazyCaller, Port, Rrset, Service, Zone};

/// Maximum length of a CNAME chain inside the cluster.
const MAX_CHAIN: usize = 8;
/// The schema version in the TXT record of `dns-version.Z`, as a character string.
const SCHEMA: &[u8] = b"\x051.1.0";
/// TTL of `dns-version.Z` in seconds.
const SCHEMA_TTL: u32 = 28_800;
/// The label between a Service's namespace and the cluster domain.
const SVC: &[u8] = b"\x03svc";
/// The largest offset that a compression pointer can encode (RFC 1035 section 4.1.4).
const MAX_POINTER: usize = 0x3fff;

/// The source of the owner name of a negative answer's SOA.
#[derive(Clone, Copy)]
enum Apex {
    /// A cluster domain, which the message contains at this offset.
    Domain(usize),
    /// A reverse zone, which the message contains at this offset.
    Reverse(usize),
    /// A short name has no zone that a SOA could be of.
    None,
}

/// Writes the records of one reply.
pub(super) struct Writer<'r, 'b, 'z> {
    zone: &'z Zone,
    lazy_caller: &'r LazyCaller<'z>,
    out: &'r mut Reply<'b>,
    turn: u16,
    /// Compression pointer to the owner of the answer: the question, or the last CNAME's target.
    owner: [u8; 2],
    apex: Apex,
    /// Index of the cluster domain under which targets are written.
    domain: usize,
    /// Whether the CNAME chain ends in a name that is outside the cluster and is forwarded.
    pub(super) leads_out: bool,
}

impl<'r, 'b, 'z> Writer<'r, 'b, 'z> {
    #[inline(always)]
    pub(super) fn new(
        zone: &'z Zone,
        lazy_caller: &'r LazyCaller<'z>,
        out: &'r mut Reply<'b>,
        space: Space,
        turn: u16,
        name: &Name,
    ) -> Self {
        out.set_flags(flags::AA);
        let mut writer =
            Writer { zone, lazy_caller, out, turn, owner: OWNER, apex: Apex::None, domain: 0, leads_out: false };
        writer.enter(space, HEADER_LEN, name);
        writer
    }

    /// Switches to a name that lies in `space` and starts at offset `at` of the message.
    #[inline(always)]
    fn enter(&mut self, space: Space, at: usize, name: &Name) {
        (self.apex, self.domain) = match space {
            Space::Domain { index, above } => (Apex::Domain(at + name.start(above)), index),
            Space::Reverse { above } => (Apex::Reverse(at + name.start(above)), 0),
            Space::Short => (Apex::None, 0),
        };
    }

    /// Answers that the name does not exist. Returns the rcode.
    #[inline(always)]
    pub(super) fn missing(&mut self, space: Space) -> u16 {
        // The meaning of a short name depends on the caller. Without an SOA, the answer is not cached (RFC 2308
        // section 5).
        if space != Space::Short {
            self.soa(Section::Authority);
        }
        rcode::NXDOMAIN
    }

    /// Answers with the records of `node`. Returns the rcode.
    #[inline(always)]
    pub(super) fn found<'n>(&mut self, node: Node<'n>, qtype: u16) -> u16
    where
        'z: 'n,
    {
        match node {
            Node::Service(service) if service.lacks(qtype) => self.nodata(),
            Node::Service(service) => match &service.kind {
                Kind::ExternalName(Some(target)) => {
                    return self.chain(service, target, qtype, &mut [None; MAX_CHAIN], 0);
                }
                _ => self.service(service, qtype),
            },
            Node::Port(service, labels) => self.srv_or_nodata(qtype, service, Some(labels)),
            Node::Endpoint(endpoint) => self.endpoint(endpoint, qtype),
            Node::Reverse(address) => self.pointers(address, qtype),
            Node::Address(address) => _ = self.address(address, qtype),
            Node::Localhost => self.localhost(qtype),
            Node::Empty => self.nodata(),
            Node::Apex => self.apex(qtype),
            Node::NameServer => {
                let (v4, v6) = self.zone.name_server();
                self.addresses(v4, v6, qtype);
            }
            Node::Version if matches!(qtype, rtype::TXT | rtype::ANY) => {
                let fits = self.record(Section::Answer, self.owner, rtype::TXT, SCHEMA_TTL, &[SCHEMA]);
                self.truncate_unless(fits);
            }
            Node::Version => self.nodata(),
        }
        rcode::NOERROR
    }

    /// Answers that the name exists but has no record of the query type.
    ///
    /// The meaning of a short name depends on the caller, so that answer must not be cached: it has no SOA (RFC 2308
    /// section 5).
    fn nodata(&mut self) {
        if !matches!(self.apex, Apex::None) {
            self.soa(Section::Authority);
        }
    }

    #[inline(always)]
    fn service(&mut self, service: &Service, qtype: u16) {
        match qtype {
            rtype::A if !service.a.is_empty() => self.rrset::<A_LEN>(&service.a),
            rtype::AAAA if !service.aaaa.is_empty() => self.rrset::<AAAA_LEN>(&service.aaaa),
            rtype::SRV => self.srv_or_nodata(qtype, service, None),
            rtype::ANY => self.addresses(&service.a, &service.aaaa, qtype),
            _ => self.nodata(),
        }
    }

    #[inline(always)]
    fn addresses(&mut self, v4: &Rrset, v6: &Rrset, qtype: u16) {
        match qtype {
            rtype::A | rtype::ANY if !v4.is_empty() => self.rrset::<A_LEN>(v4),
            rtype::AAAA | rtype::ANY if !v6.is_empty() => self.rrset::<AAAA_LEN>(v6),
            _ => self.nodata(),
        }
    }

    /// Answers for an ExternalName: a CNAME for any query type, then the target's records if the target is in the
    /// cluster (RFC 1034 section 4.3.2). Returns the rcode, which is that of the last name in the chain (RFC 6604).
    fn chain<'n>(
        &mut self,
        service: &'n Service,
        target: &[u8],
        qtype: u16,
        seen: &mut [Option<*const Service>; MAX_CHAIN],
        depth: usize,
    ) -> u16
    where
        'z: 'n,
    {
        let this = std::ptr::from_ref(service);
        let Some(place) = seen.get_mut(depth) else { return rcode::NOERROR };
        *place = Some(this);
        let at = self.out.at() + 12;
        let fits = self.record(Section::Answer, self.owner, rtype::CNAME, self.zone.settings.ttl, &[target]);
        self.truncate_unless(fits);
        if !fits || matches!(qtype, rtype::CNAME | rtype::ANY) {
            return rcode::NOERROR;
        }
        let Ok(name) = Name::parse(target, 0) else { return rcode::NOERROR };
        if !self.zone.settings.is_ours(&name) {
            self.leads_out = self.zone.settings.is_forwarded(&name);
            return rcode::NOERROR;
        }
        if at > MAX_POINTER {
            return rcode::NOERROR;
        }
        self.owner = pointer(at);
        match resolve(&self.lazy_caller.reborrow(), &name, NoTrace) {
            Outcome::Found(node, space) => {
                self.enter(space, at, &name);
                match node {
                    Node::Service(next) => match &next.kind {
                        // On a loop, the answer ends with the CNAMEs written so far.
                        Kind::ExternalName(Some(_)) if seen.contains(&Some(std::ptr::from_ref(next))) => rcode::NOERROR,
                        Kind::ExternalName(Some(target)) => self.chain(next, target, qtype, seen, depth + 1),
                        _ => self.found(node, qtype),
                    },
                    _ => self.found(node, qtype),
                }
            }
            Outcome::Missing(space) => {
                self.enter(space, at, &name);
                self.missing(space)
            }
            Outcome::NotOurs | Outcome::NotReady => rcode::NOERROR,
        }
    }

    fn apex(&mut self, qtype: u16) {
        match qtype {
            rtype::SOA | rtype::ANY => self.soa(Section::Answer),
            rtype::NS => {
                let at = self.out.at() + 12;
                let apex = self.owner;
                let fits = self.record(Section::Answer, apex, rtype::NS, self.zone.settings.ttl, &[NAME_SERVER, &apex]);
                self.truncate_unless(fits);
                if fits {
                    let (v4, v6) = self.zone.name_server();
                    self.glue::<A_LEN>(v4, at);
                    self.glue::<AAAA_LEN>(v6, at);
                }
            }
            _ => self.nodata(),
        }
    }

    /// Answers with an address, if it has the query type. Returns whether it fits.
    fn address(&mut self, address: IpAddr, qtype: u16) -> bool {
        let ttl = self.zone.settings.ttl;
        let fits = match address {
            IpAddr::V4(v4) if matches!(qtype, rtype::A | rtype::ANY) => {
                self.record(Section::Answer, self.owner, rtype::A, ttl, &[&v4.octets()])
            }
            IpAddr::V6(v6) if matches!(qtype, rtype::AAAA | rtype::ANY) => {
                self.record(Section::Answer, self.owner, rtype::AAAA, ttl, &[&v6.octets()])
            }
            _ => {
                self.nodata();
                return true;
            }
        };
        self.truncate_unless(fits);
        fits
    }

    fn localhost(&mut self, qtype: u16) {
        match qtype {
            rtype::AAAA => self.address(IpAddr::from(std::net::Ipv6Addr::LOCALHOST), qtype),
            _ => self.address(IpAddr::from(std::net::Ipv4Addr::LOCALHOST), qtype),
        };
    }

    fn endpoint(&mut self, endpoint: EndpointMatch<'_>, qtype: u16) {
        match qtype {
            rtype::A if endpoint.has_v4() => self.endpoint_addresses(endpoint, true),
            rtype::AAAA if endpoint.has_v6() => self.endpoint_addresses(endpoint, false),
            rtype::ANY => self.endpoint_addresses(endpoint, endpoint.has_v4()),
            rtype::SRV => {
                let Some(first) = endpoint.iter().next() else { return self.nodata() };
                let ports = endpoint.service.endpoints.ports(first.named_group);
                let numbers = ports.iter().filter(|port| !port.repeats).map(|port| port.number);
                self.srv(endpoint.service, numbers.clone().count(), std::iter::once((first, numbers)));
            }
            _ => self.nodata(),
        }
    }

    fn endpoint_addresses(&mut self, endpoint: EndpointMatch<'_>, v4: bool) {
        let (mut last, qtype) = (None, if v4 { rtype::A } else { rtype::AAAA });
        for endpoint in endpoint.iter_family(v4) {
            // Endpoints are sorted by address, so duplicates from several slices are adjacent.
            if last.replace(endpoint.address) != Some(endpoint.address) && !self.address(endpoint.address, qtype) {
                return;
            }
        }
    }

    fn srv_or_nodata(&mut self, qtype: u16, service: &Service, labels: Option<PortLabels<'_>>) {
        if !matches!(qtype, rtype::SRV | rtype::ANY) {
            return self.nodata();
        }
        let endpoints = &service.endpoints;
        match &service.kind {
            Kind::Cluster(ports) => self.srv_of_cluster_ip(service, ports, labels),
            Kind::Headless => {
                let list = match labels {
                    None => Some(&endpoints.srv),
                    Some(labels) => endpoints.srv_of(labels.port, labels.protocol),
                };
                let Some(list) = list else { return self.nodata() };
                let targets = list.targets(endpoints, self.turn);
                let targets = targets.map(|(endpoint, numbers)| (endpoint, numbers.iter().copied()));
                self.srv(service, list.records, targets);
            }
            Kind::ExternalName(_) => self.nodata(),
        }
    }

    /// Writes SRV records whose target is the Service itself.
    fn srv_of_cluster_ip(&mut self, service: &Service, ports: &[Port], labels: Option<PortLabels<'_>>) {
        let wanted = || ports.iter().filter(|port| has_labels(port, labels));
        let count = wanted().count();
        if count == 0 {
            return self.nodata();
        }
        let first = self.out.at() + 18;
        for port in wanted() {
            if !self.srv_record(weight(count), port.number, &[], service) {
                return self.truncate_unless(false);
            }
        }
        self.glue::<A_LEN>(&service.a, first);
        self.glue::<AAAA_LEN>(&service.aaaa, first);
    }

    /// Writes SRV records whose targets are endpoints: `count` of them. Each target has a record, so that the work ends
    /// where the message is full.
    fn srv<'e, N: Iterator<Item = u16> + Clone>(
        &mut self,
        service: &Service,
        count: usize,
        targets: impl Iterator<Item = (&'e Endpoint, N)> + Clone,
    ) {
        if count == 0 {
            return self.nodata();
        }
        let mut at = self.out.at();
        for (endpoint, numbers) in targets.clone() {
            for number in numbers {
                if !with_label(endpoint, |label| self.srv_record(weight(count), number, label, service)) {
                    return self.truncate_unless(false);
                }
            }
        }
        // Each target's addresses appear once, and their owner points to the target in its first SRV record.
        for (endpoint, numbers) in targets {
            if !self.endpoint_glue(service, endpoint, at + 18) {
                return;
            }
            at += numbers.count() * with_label(endpoint, |label| 18 + self.target_len(label, service));
        }
    }

    fn target_len(&self, label: &[u8], service: &Service) -> usize {
        let domain = self.zone.settings.domains.get(self.domain).map_or(0, |domain| domain.wire.len());
        label.len() + service.name.labels().len() + SVC.len() + domain
    }

    /// Writes the addresses of an SRV target. Returns `false` if there is no room for more.
    fn endpoint_glue(&mut self, service: &Service, endpoint: &Endpoint, at: usize) -> bool {
        let Some(label) = &endpoint.label else { return self.glue_address(endpoint.address, at) };
        let all = &service.endpoints.all;
        let mut last = None;
        for index in service.endpoints.labelled(label) {
            let Some(address) = all.get(*index as usize).map(|endpoint| endpoint.address) else { continue };
            if last.replace(address) != Some(address) && !self.glue_address(address, at) {
                return false;
            }
        }
        true
    }

    fn glue_address(&mut self, address: IpAddr, at: usize) -> bool {
        if at > MAX_POINTER {
            return false;
        }
        let ttl = self.zone.settings.ttl;
        match address {
            IpAddr::V4(v4) => self.record(Section::Additional, pointer(at), rtype::A, ttl, &[&v4.octets()]),
            IpAddr::V6(v6) => self.record(Section::Additional, pointer(at), rtype::AAAA, ttl, &[&v6.octets()]),
        }
    }

    /// Writes an SRV record. Its target is never compressed (RFC 2782).
    fn srv_record(&mut self, weight: u16, port: u16, label: &[u8], service: &Service) -> bool {
        let ([w0, w1], [p0, p1]) = (weight.to_be_bytes(), port.to_be_bytes());
        let domain = self.zone.settings.domains.get(self.domain).map_or(&[][..], |domain| &domain.wire);
        let rdata = [&[0, 0, w0, w1, p0, p1][..], label, service.name.labels(), SVC, domain];
        self.record(Section::Answer, self.owner, rtype::SRV, self.zone.settings.ttl, &rdata)
    }

    /// Answers with the names of an address.
    fn pointers(&mut self, address: IpAddr, qtype: u16) {
        if !matches!(qtype, rtype::PTR | rtype::ANY) {
            return self.nodata();
        }
        let zone = self.zone;
        let lazy_caller = self.lazy_caller;
        zone.owners_of(
            address,
            || lazy_caller.namespace(),
            |service| {
                if service.has_cluster_ip(address) {
                    // Any tenant can write an EndpointSlice with this address. It must not add names.
                    let fits = self.pointer_record(&[], service);
                    self.truncate_unless(fits);
                    return false;
                }
                let mut fits = true;
                let mut last: Option<&Endpoint> = None;
                for endpoint in service.endpoints.at(address) {
                    if fits && last.replace(endpoint).is_none_or(|last| last.label != endpoint.label) {
                        fits = with_label(endpoint, |label| self.pointer_record(label, service));
                    }
                }
                self.truncate_unless(fits);
                fits
            },
        );
    }

    fn pointer_record(&mut self, label: &[u8], service: &Service) -> bool {
        let domain = self.zone.settings.domains.get(self.domain).map_or(&[][..], |domain| &domain.wire);
        let rdata = [label, service.name.labels(), SVC, domain];
        self.record(Section::Answer, self.owner, rtype::PTR, self.zone.settings.ttl, &rdata)
    }

    /// Answers with an rrset, rotated by `turn`: two copies, and no more records than fit.
    #[inline(always)]
    fn rrset<const LEN: usize>(&mut self, set: &Rrset) {
        let records = set.octets();
        let count = records.len() / LEN;
        let fit = count.min(self.out.room() / LEN);
        let start = if count > 1 { usize::from(self.turn) % count } else { 0 };
        let at = self.out.at();
        let (before, from) = records.split_at(start * LEN);
        let upper = from.get(..fit * LEN).unwrap_or(from);
        let lower = before.get(..fit * LEN - upper.len()).unwrap_or(before);
        let pushed = self.out.push(upper) && self.out.push(lower);
        debug_assert!(pushed);
        self.out.count(Section::Answer, fit as u16);
        if self.owner != OWNER {
            self.set_owner::<LEN>(at, u16::from_be_bytes(self.owner));
        }
        self.truncate_unless(fit == count);
    }

    /// Adds the addresses of the name at offset `name`, as many as fit.
    fn glue<const LEN: usize>(&mut self, set: &Rrset, name: usize) {
        let fit = (set.octets().len() / LEN).min(self.out.room() / LEN);
        let at = self.out.at();
        let glue = set.octets().get(..fit * LEN).unwrap_or(&[]);
        if name <= MAX_POINTER && self.out.push(glue) {
            self.out.count(Section::Additional, fit as u16);
            self.set_owner::<LEN>(at, u16::from_be_bytes(pointer(name)));
        }
    }

    /// Replaces the owner of the encoded records from `at` on, which is the question's name.
    fn set_owner<const LEN: usize>(&mut self, at: usize, owner: u16) {
        for at in (at..self.out.at()).step_by(LEN) {
            self.out.patch(at, owner);
        }
    }

    /// Writes one record, with its rdata in pieces, completely or not at all; returns whether it fit.
    #[inline(always)]
    fn record(&mut self, section: Section, owner: [u8; 2], rtype: u16, ttl: u32, rdata: &[&[u8]]) -> bool {
        let length: usize = rdata.iter().map(|piece| piece.len()).sum();
        let before = self.out.at();
        let fits = self.out.push(&record_head(owner, rtype, ttl, length as u16)) && self.out.push_all(rdata);
        if fits {
            self.out.count(section, 1);
        } else {
            self.out.rewind(before);
        }
        fits
    }

    /// Sets TC unless all records of the answer section fit, its only meaning (RFC 2181 section 9).
    #[inline(always)]
    fn truncate_unless(&mut self, fits: bool) {
        if !fits {
            self.out.set_flags(flags::TC);
        }
    }

    /// Writes the SOA record. In the answer section, its owner is the question; in the authority section, it is the
    /// zone, as a pointer if the message contains the zone's name.
    #[inline(always)]
    fn soa(&mut self, section: Section) {
        let fits = match self.apex {
            Apex::Domain(offset) => self.out.push(&self.zone.soa.at(pointer(offset))),
            _ => self.soa_without_domain(),
        };
        if fits {
            self.out.count(section, 1);
        } else {
            self.truncate_unless(section != Section::Answer);
        }
    }

    /// Writes the SOA record in a message that does not contain the cluster domain; returns whether it fit.
    fn soa_without_domain(&mut self) -> bool {
        let before = self.out.at();
        let fits = self.soa_octets(self.zone.settings.negative_ttl()).is_some();
        if !fits {
            self.out.rewind(before);
        }
        fits
    }

    fn soa_octets(&mut self, ttl: u32) -> Option<()> {
        let settings = &*self.zone.settings;
        let domain = &settings.domains.get(self.domain)?.wire;
        let pushed = |fits: bool| fits.then_some(());
        // Offset of the domain once the message contains it. "ns.dns." and "hostmaster." end in a pointer to it.
        let mut spelled = None;
        match self.apex {
            Apex::Domain(offset) | Apex::Reverse(offset) => pushed(self.out.push(&pointer(offset)))?,
            Apex::None => return None,
        }
        let [_, _, head @ ..] = record_head(OWNER, rtype::SOA, ttl, 0);
        pushed(self.out.push(&head))?;
        let rdata = self.out.at();
        for labels in [&NAME_SERVER[..], HOSTMASTER] {
            pushed(self.out.push(labels))?;
            match spelled {
                Some(offset) => pushed(self.out.push(&pointer(offset)))?,
                None => {
                    spelled = Some(self.out.at());
                    pushed(self.out.push(domain))?;
                }
            }
        }
        pushed(self.out.push(self.zone.soa.numbers()))?;
        self.out.patch(rdata - 2, (self.out.at() - rdata) as u16);
        Some(())
    }
}

/// Encodes a compression pointer; `at` must not exceed [`MAX_POINTER`].
#[inline(always)]
fn pointer(at: usize) -> [u8; 2] {
    (0xc000 | at as u16 & 0x3fff).to_be_bytes()
}

/// floor(100 / records), at least 1: Kubernetes DNS-Based Service Discovery leaves weights to the server.
fn weight(records: usize) -> u16 {
    (100 / records.max(1)).max(1) as u16
}

fn has_labels(port: &Port, labels: Option<PortLabels<'_>>) -> bool {
    match labels {
        Some(labels) => port.protocol == labels.protocol && *port.label == *labels.port,
        None => !port.repeats,
    }
}

/// Calls `with` with the label of an endpoint's name.
#[inline(always)]
fn with_label<T>(endpoint: &Endpoint, with: impl FnOnce(&[u8]) -> T) -> T {
    match &endpoint.label {
        Some(label) => with(label),
        None => with(Dashed::new(endpoint.address).label()),
    }
}
