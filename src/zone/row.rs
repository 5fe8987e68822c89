//! The rows of the table of Services.

use std::ops::Deref;
use std::sync::Arc;

use super::Label;
use super::names::ServiceName;
use super::persistent_map::Slot;
use super::rrset::{A_LEN, OWNER, record_head};
use super::service::{Kind, Service};
use crate::wire::{Reply, rtype, same};

/// Octets of labels that a row has room for. Nearly all names are that short.
const LABELS: usize = 41;

/// Properties of the Service in [`Row::flags`].
mod is {
    /// Everyone may see it.
    pub(super) const OPEN: u8 = 1;
    /// It has records: see [`Service::answers`](super::Service::answers).
    pub(super) const ANSWERING: u8 = 2;
    /// It has exactly one A record.
    pub(super) const LONE_A: u8 = 4;
    /// It has no A record, and no CNAME in its place.
    pub(super) const WITHOUT_A: u8 = 8;
    /// It has no AAAA record, and no CNAME in its place.
    pub(super) const WITHOUT_AAAA: u8 = 16;
}

/// A Service, and beside it a copy of what nearly every answer needs: its name, whether anyone may see it, and its
/// address. A row is one cache line, so that such an answer waits for memory once, and not for the Service and its name
/// as well (`docs/performance.md`).
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Row {
    /// Hash of the name.
    hash: u64,
    service: Arc<Service>,
    /// The address in the A record, if there is exactly one.
    lone_a: [u8; 4],
    flags: u8,
    /// Length of the Service's own label, with its length octet; more than [`LABELS`] if the row has no room for both.
    split: u8,
    /// Length of both labels.
    len: u8,
    labels: [u8; LABELS],
}

const _: () = assert!(size_of::<Row>() == 64);

impl Row {
    /// Creates the row of a Service.
    pub(super) fn new(service: Arc<Service>) -> Row {
        let name = &*service.name;
        let lone_a = service.a.lone_a();
        let is_alias = matches!(service.kind, Kind::ExternalName(_));
        let flag = |condition: bool, flag| if condition { flag } else { 0 };
        let flags = flag(service.visibility.is_none(), is::OPEN)
            | flag(service.answers(), is::ANSWERING)
            | flag(lone_a.is_some(), is::LONE_A)
            | flag(!is_alias && service.a.is_empty(), is::WITHOUT_A)
            | flag(!is_alias && service.aaaa.is_empty(), is::WITHOUT_AAAA);
        let mut labels = [0; LABELS];
        let (mut split, mut len) = (u8::MAX, 0);
        if let Some(place) = labels.get_mut(..name.labels().len()) {
            place.copy_from_slice(name.labels());
            (split, len) = (name.service().len() as u8, name.labels().len() as u8);
        }
        Row { hash: name.hash(), lone_a: lone_a.unwrap_or_default(), flags, split, len, labels, service }
    }

    /// The Service itself.
    pub fn shared(&self) -> &Arc<Service> {
        &self.service
    }

    /// Whether the Service is called `label` in `namespace`.
    #[inline(always)]
    pub(super) fn is(&self, label: Label<'_>, namespace: Label<'_>) -> bool {
        let (split, len) = (usize::from(self.split), usize::from(self.len));
        match (self.labels.get(..split), self.labels.get(split..len)) {
            (Some(own), Some(within)) => same(own, label.octets) && same(within, namespace.octets),
            _ => self.service.name.is(label, namespace),
        }
    }

    /// Whether this is the row of the Service with this name.
    pub(super) fn has_name(&self, name: &ServiceName) -> bool {
        *self.service.name == *name
    }

    /// Whether everyone may see the Service.
    #[inline(always)]
    pub fn is_open(&self) -> bool {
        self.flags & is::OPEN != 0
    }

    /// See [`Service::answers`].
    #[inline(always)]
    pub fn answers(&self) -> bool {
        self.flags & is::ANSWERING != 0
    }

    /// Whether the Service is known to have no record of the type. In clusters without IPv6, this answers half of all
    /// questions.
    #[inline(always)]
    pub fn lacks(&self, qtype: u16) -> bool {
        match qtype {
            rtype::A => self.flags & is::WITHOUT_A != 0,
            rtype::AAAA => self.flags & is::WITHOUT_AAAA != 0,
            _ => false,
        }
    }

    /// Writes the address, with a TTL of `ttl` seconds, if there is exactly one of the query type, and returns whether it
    /// did.
    #[inline(always)]
    pub fn push_lone(&self, qtype: u16, ttl: u32, out: &mut Reply<'_>) -> bool {
        match qtype {
            rtype::A if self.flags & is::LONE_A != 0 => {
                let mut record = [0; A_LEN];
                let (head, address) = record.split_at_mut(A_LEN - 4);
                head.copy_from_slice(&record_head(OWNER, rtype::A, ttl, 4));
                address.copy_from_slice(&self.lone_a);
                out.push(&record)
            }
            rtype::AAAA => self.service.aaaa.push_lone(out),
            _ => false,
        }
    }
}

impl Deref for Row {
    type Target = Service;

    #[inline(always)]
    fn deref(&self) -> &Service {
        &self.service
    }
}

impl Slot for Row {
    #[inline(always)]
    fn hash(&self) -> u64 {
        self.hash
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::wire::label_of;
    use crate::zone::rrset::Rrset;
    use crate::zone::service::Endpoints;
    use crate::zone::{Domain, Settings, Zone};

    #[test]
    fn a_row_says_what_its_service_says_however_long_the_name() {
        let zone = Zone::unsynced(Arc::new(Settings::new(vec![Domain::new("cluster.local").unwrap()])));
        let v4 = Ipv4Addr::new(10, 96, 0, 1);
        let records = [Rrset::default(), Rrset::a(&[v4], 30), Rrset::a(&[v4, v4], 30)];
        for (a, length) in records.iter().flat_map(|a| (1..=63).map(move |length| (a, length))) {
            let [label, namespace, other] = ["s", "n", "o"].map(|letter| label_of(&letter.repeat(length)).unwrap());
            let service = Service {
                name: Arc::new(ServiceName::new(zone.settings.seed, &label, &namespace)),
                visibility: None,
                kind: Kind::Cluster(Box::default()),
                a: a.clone(),
                aaaa: Rrset::aaaa(&[Ipv6Addr::LOCALHOST], 30),
                endpoints: Endpoints::default(),
            };
            let row = Row::new(Arc::new(service));
            let [label, namespace, other] = [&label, &namespace, &other].map(|octets| zone.label(octets));
            assert!(row.is(label, namespace) && row.has_name(&row.name), "{length}");
            assert!(!row.is(other, namespace) && !row.is(label, other) && !row.is(namespace, label), "{length}");
            assert!(row.is_open() && row.answers());
            let mut buffer = [0; 512];
            let query = [0; 12];
            for (qtype, rrset) in [(rtype::A, &row.a), (rtype::AAAA, &row.aaaa), (rtype::TXT, &Rrset::default())] {
                let mut out = Reply::start(&mut buffer, &query, 12, 0, 512, 0).unwrap();
                let is_lone = [A_LEN, 28].contains(&rrset.octets().len());
                assert_eq!(row.push_lone(qtype, 30, &mut out), is_lone);
                assert_eq!(row.lacks(qtype), qtype != rtype::TXT && rrset.is_empty());
                let end = out.at();
                assert_eq!(&buffer[12..end], if is_lone { rrset.octets() } else { &[] });
            }
        }
    }
}
