//! A cluster of any size, and the questions of the benchmarks.
#![allow(dead_code, missing_docs)]

use std::net::IpAddr;
use std::sync::Arc;

use callsign::zone::facts::{
    Change, EndpointFact, Key, NamespaceFact, PortFact, Protocol, ServiceFact, ServiceType, SliceFact,
};
use callsign::zone::{Builder, Domain, Settings, Zone};

fn fact(service_type: ServiceType) -> ServiceFact {
    let port = PortFact { name: "http".into(), protocol: Protocol::Tcp, number: 80, target: None, app_protocol: None };
    ServiceFact { service_type, ports: vec![port], ..ServiceFact::default() }
}

/// A zone with `services` ClusterIP Services in 100 namespaces, and with the objects for short names. Callers are in
/// `web`.
pub fn zone(services: u32) -> Arc<Zone> {
    let mut settings = Settings::new(vec![Domain::new("cluster.local").expect("a domain")]);
    settings.namespace = settings.namespace_name("web").ok();
    settings.reverse = "10.0.0.0/8".parse().into_iter().collect();
    let mut builder = Builder::new(Arc::new(settings));
    let mut service = |namespace: &str, name: &str, address: u32, change: &dyn Fn(&mut ServiceFact)| {
        let mut fact = fact(ServiceType::Cluster(vec![IpAddr::from(address.to_be_bytes())]));
        change(&mut fact);
        builder.apply(Change::Service(Key::new(namespace, name), Some(fact.into())));
    };
    let base = u32::from_be_bytes([10, 96, 0, 0]);
    for n in 0..services {
        service(&format!("namespace-{}", n % 100), &format!("service-{n}"), base + n, &|_| {});
    }
    let first = u32::from_be_bytes([10, 200, 0, 0]);
    service("web", "api", first, &|fact| fact.aliases = vec!["backend".into()]);
    service("web", "mysql-default", first + 1, &|_| {});
    service("orders", "api", first + 2, &|_| {});
    service("ix-sab", "sab-sabnzbd", first + 3, &|fact| {
        fact.release = Some("sab".into());
        fact.chart = Some("sabnzbd".into());
    });
    builder.apply(Change::Service(Key::new("web", "many"), Some(self::fact(ServiceType::Headless).into())));
    let ready = (0..100u8).map(|n| EndpointFact { address: IpAddr::from([10, 244, 1, n]), name: None }).collect();
    let ports = self::fact(ServiceType::Headless).ports;
    let slice = SliceFact { service: Some("many".into()), ready, total: 100, ports, ..SliceFact::default() };
    builder.apply(Change::Slice(Key::new("web", "many-1"), Some(slice.into())));
    builder.apply(Change::Namespace("web".into(), Some(NamespaceFact::default())));
    builder.set_synced();
    builder.publish().expect("a zone")
}

/// The questions: a description, the name, the type, and whether the query has EDNS.
pub const QUESTIONS: &[(&str, &str, u16, bool)] = &[
    ("hit, EDNS", "api.web.svc.cluster.local", 1, true),
    ("hit", "api.web.svc.cluster.local", 1, false),
    ("NODATA", "api.web.svc.cluster.local", 28, true),
    ("NXDOMAIN", "nope.web.svc.cluster.local", 1, true),
    ("headless of 100", "many.web.svc.cluster.local", 1, true),
    ("SRV with glue", "_http._tcp.api.web.svc.cluster.local", 33, true),
    ("PTR", "0.0.200.10.in-addr.arpa", 12, true),
    ("short: api", "api", 1, true),
    ("short: api.orders", "api.orders", 1, true),
    ("short: alias", "backend", 1, true),
    ("short: database", "mysql", 1, true),
    ("short: application", "sab", 1, true),
    ("short: NXDOMAIN", "nothing", 1, true),
    ("short: x.y.svc", "api.orders.svc", 1, true),
];

pub fn query(name: &str, qtype: u16, edns: bool) -> Vec<u8> {
    let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
    message.extend_from_slice(&callsign::wire::name_from_text(name).expect("a name"));
    message.extend_from_slice(&qtype.to_be_bytes());
    message.extend_from_slice(&[0, 1]);
    if edns {
        message.extend_from_slice(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    }
    message
}
