//! `discovery.k8s.io/v1` EndpointSlice.

use std::net::IpAddr;

use serde::Deserialize;
use serde::de::{Deserializer, Visitor};

use super::meta::Meta;
use super::ports::{PortObject, ports};
use super::{MAX_ADDRESSES, Object, ParseOptions, key_of, label, quoted};
use crate::wire::name_from_text;
use crate::zone::facts::{Change, EndpointFact, Key, SliceFact, UnreadyFact};

/// `discovery.k8s.io/v1` EndpointSlice.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSliceObject {
    /// See [`Meta`].
    #[serde(default)]
    pub metadata: Option<Meta>,
    address_type: Option<String>,
    endpoints: Option<Vec<Option<SliceEndpoint>>>,
    ports: Option<Vec<PortObject>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SliceEndpoint {
    addresses: Option<Vec<EndpointAddress>>,
    conditions: Option<Conditions>,
    hostname: Option<String>,
    target_ref: Option<TargetRef>,
}

#[derive(Debug, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct TargetRef {
    kind: Option<TargetKind>,
    name: Option<String>,
}

#[derive(Debug, PartialEq, Deserialize)]
enum TargetKind {
    Pod,
    #[serde(other)]
    Other,
}

/// An endpoint's address. It is parsed without an intermediate string, because there are many of them. Other text is
/// stored unchanged.
#[derive(Debug)]
enum EndpointAddress {
    Address(IpAddr),
    Text(Box<str>),
}

impl<'de> Deserialize<'de> for EndpointAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<EndpointAddress, D::Error> {
        struct AddressVisitor;
        impl Visitor<'_> for AddressVisitor {
            type Value = EndpointAddress;
            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("an address")
            }
            fn visit_str<E>(self, value: &str) -> Result<EndpointAddress, E> {
                Ok(value.parse().map_or_else(|_| EndpointAddress::Text(value.into()), EndpointAddress::Address))
            }
        }
        deserializer.deserialize_str(AddressVisitor)
    }
}

impl Object for EndpointSliceObject {
    const KIND: &'static str = "EndpointSlice";
    type Id = Key;

    fn id(meta: &Meta) -> Option<Key> {
        Some(Key::new(meta.namespace(), meta.name()?))
    }

    fn metadata(&self) -> Option<&Meta> {
        self.metadata.as_ref()
    }

    fn change(&self, meta: &Meta, parse_options: ParseOptions, notes: &mut Vec<String>) -> Result<Change, String> {
        let key = key_of(meta)?;
        let service = meta.labels.as_ref().and_then(|labels| labels.service_name.as_ref());
        let mut fact = SliceFact {
            service: service.filter(|name| !name.0.is_empty()).map(|name| name.0.to_ascii_lowercase().into()),
            ports: ports(&self.ports, notes)?,
            ..SliceFact::default()
        };
        let (mut left_out, mut unready) = (0_usize, Vec::new());
        let fqdn = self.address_type.as_deref() == Some("FQDN");
        for endpoint in self.endpoints.iter().flatten().flatten() {
            fact.total += 1;
            // `ready: null` means ready (API documentation of EndpointConditions).
            if endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(false) {
                if parse_options.for_commands {
                    unready.push(endpoint.unready());
                }
                continue;
            }
            for listed in endpoint.addresses.iter().flatten() {
                if fact.ready.len() + fact.targets.len() >= MAX_ADDRESSES {
                    left_out += 1;
                    continue;
                }
                match listed {
                    EndpointAddress::Address(IpAddr::V6(v6)) if !fqdn && v6.to_ipv4_mapped().is_some() => {
                        return Err(format!("address '{v6}' is an IPv4 address in IPv6 notation; write it as IPv4"));
                    }
                    EndpointAddress::Address(address) if !fqdn => {
                        fact.ready.push(EndpointFact { address: *address, name: endpoint.name(parse_options, notes) });
                    }
                    EndpointAddress::Text(text) if fqdn => {
                        fact.targets.push(
                            name_from_text(text).map_err(|error| format!("address '{}': {error}", quoted(text)))?,
                        );
                    }
                    EndpointAddress::Address(address) => {
                        return Err(format!("address '{address}' is not a domain name"));
                    }
                    EndpointAddress::Text(text) => {
                        return Err(format!("address '{}' is not an IP address", quoted(text)));
                    }
                }
            }
        }
        if left_out > 0 {
            notes.push(format!("it has {left_out} addresses too many; only the first {MAX_ADDRESSES} are used"));
        }
        // The order has no meaning. Sorting makes slices with the same endpoints compare as equal.
        fact.ready.sort_unstable();
        fact.ready.dedup();
        fact.ready.shrink_to_fit();
        unready.sort_unstable();
        fact.unready = unready.into();
        Ok(Change::Slice(key, Some(fact.into())))
    }

    fn gone(key: Key) -> Change {
        Change::Slice(key, None)
    }
}

impl SliceEndpoint {
    fn unready(&self) -> UnreadyFact {
        let address = self.addresses.iter().flatten().next().map(|address| match address {
            EndpointAddress::Address(address) => address.to_string(),
            EndpointAddress::Text(text) => quoted(text),
        });
        let pod = self.target_ref.as_ref().filter(|target| target.kind == Some(TargetKind::Pod));
        UnreadyFact {
            address: address.unwrap_or_default().into(),
            pod: pod.and_then(|target| target.name.as_deref()).map(quoted).unwrap_or_default().into(),
            is_terminating: self.conditions.as_ref().and_then(|conditions| conditions.terminating) == Some(true),
        }
    }

    /// Returns the endpoint's label; `None` if its address serves as its name.
    fn name(&self, parse_options: ParseOptions, notes: &mut Vec<String>) -> Option<Box<str>> {
        if let Some(hostname) = self.hostname.as_deref().filter(|hostname| !hostname.is_empty()) {
            match label("hostname", hostname) {
                Ok(hostname) => return Some(hostname),
                // One complaint is enough for an object.
                Err(error) if notes.is_empty() => {
                    notes.push(format!("{error}; the endpoint is named by its address"));
                }
                Err(_) => {}
            }
        }
        if !parse_options.endpoint_pod_names {
            return None;
        }
        let pod = self.target_ref.as_ref().filter(|target| target.kind == Some(TargetKind::Pod))?.name.as_deref()?;
        // A pod name that has dots or is longer than a label is not usable; the endpoint is named by its address.
        label("pod", pod).ok()
    }
}
