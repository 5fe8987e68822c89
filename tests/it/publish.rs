//! From facts to zones: the cost of a change, and its effect on the SOA serial.

use std::net::IpAddr;
use std::sync::Arc;

use crate::common::{CLIENT, query, reply, text};
use callsign::answer::Limit;
use callsign::zone::facts::{
    Change, EndpointFact, Key, NamespaceFact, PodFact, PodId, PortFact, Protocol, ServiceFact, ServiceType, SliceFact,
    VisibleTo,
};
use callsign::zone::{Builder, Caller, Domain, Settings, Zone};

fn builder() -> Builder {
    let mut builder = Builder::new(Arc::new(Settings::new(vec![Domain::new("cluster.local").unwrap()])));
    builder.set_synced();
    builder
}

fn service(service_type: ServiceType) -> Arc<ServiceFact> {
    let port = PortFact { name: "http".into(), protocol: Protocol::Tcp, number: 80, target: None, app_protocol: None };
    Arc::new(ServiceFact { service_type, ports: vec![port], ..ServiceFact::default() })
}

fn cluster_ip(n: u32) -> ServiceType {
    ServiceType::Cluster(vec![IpAddr::from([10, 96, (n >> 8) as u8, n as u8])])
}

fn slice(service: &str, addresses: &[[u8; 4]]) -> Arc<SliceFact> {
    let ready = addresses.iter().map(|address| EndpointFact { address: IpAddr::from(*address), name: None }).collect();
    Arc::new(SliceFact { service: Some(service.into()), ready, total: addresses.len() as u32, ..SliceFact::default() })
}

fn serial_of(zone: &Zone) -> u32 {
    let reply = reply(zone, CLIENT, &query("cluster.local SOA", None), Limit::Datagram).unwrap();
    let message = hickory_proto::op::Message::from_vec(&reply).unwrap();
    match &message.answers[0].data {
        hickory_proto::rr::RData::SOA(soa) => soa.serial,
        other => panic!("{other}"),
    }
}

#[test]
fn the_serial_grows_only_if_an_answer_changes() {
    let mut builder = builder();
    let key = |name: &str| Key::new("web", name);
    builder.apply(Change::Service(key("api"), Some(service(cluster_ip(1)))));
    builder.apply(Change::Service(key("db"), Some(service(ServiceType::Headless))));
    builder.apply(Change::Slice(key("db-1"), Some(slice("db", &[[10, 1, 0, 1]]))));
    let mut serial = serial_of(&builder.publish().unwrap());
    let with = |change: fn(&mut ServiceFact)| {
        let mut fact = service(cluster_ip(1));
        change(Arc::make_mut(&mut fact));
        Change::Service(Key::new("web", "api"), Some(fact))
    };
    let cases: Vec<(&str, Change, bool)> = vec![
        ("an unchanged Service", with(|_| {}), false),
        ("links, which are not part of any answer", with(|fact| fact.links = Some("db".into())), false),
        ("the target of a port", with(|fact| fact.ports[0].target = Some("3000".into())), false),
        ("a chart label outside of an app", with(|fact| fact.chart = Some("api".into())), false),
        ("the number of a port", with(|fact| fact.ports[0].number = 81), true),
        ("an alias", with(|fact| fact.aliases = vec!["backend".into()]), true),
        ("visibility", with(|fact| fact.visible_to = Some(VisibleTo::Cluster)), true),
        ("a new Service", Change::Service(key("new"), Some(service(cluster_ip(2)))), true),
        ("a deleted Service", Change::Service(key("new"), None), true),
        ("the deletion of an unknown Service", Change::Service(key("never"), None), false),
        ("an unchanged slice", Change::Slice(key("db-1"), Some(slice("db", &[[10, 1, 0, 1]]))), false),
        ("the same endpoint in a second slice", Change::Slice(key("db-2"), Some(slice("db", &[[10, 1, 0, 1]]))), false),
        ("a new endpoint", Change::Slice(key("db-2"), Some(slice("db", &[[10, 1, 0, 2]]))), true),
        ("a slice of a missing Service", Change::Slice(key("x"), Some(slice("missing", &[[10, 1, 0, 9]]))), false),
        ("a slice that moves to another Service", Change::Slice(key("x"), Some(slice("db", &[[10, 1, 0, 9]]))), true),
        ("a slice that loses its Service", Change::Slice(key("x"), Some(Arc::default())), true),
        ("a new namespace", Change::Namespace("other".into(), Some(NamespaceFact::default())), true),
        ("an unchanged namespace", Change::Namespace("other".into(), Some(NamespaceFact::default())), false),
        ("a deleted namespace", Change::Namespace("other".into(), None), true),
        (
            "a namespace that already has Services",
            Change::Namespace("web".into(), Some(NamespaceFact::default())),
            false,
        ),
    ];
    for (case, change, alters) in cases {
        builder.apply(change);
        let zone = builder.publish();
        assert_eq!(zone.is_some(), alters, "{case}");
        if let Some(zone) = zone {
            let next = serial_of(&zone);
            assert!(next.wrapping_sub(serial) as i32 > 0, "{case}: {next} after {serial}");
            serial = next;
        }
    }
}

#[test]
fn services_of_an_unreported_namespace_are_visible_there_only() {
    let mut builder = builder();
    builder.expect_namespaces();
    builder.apply(Change::Namespace("web".into(), Some(NamespaceFact::default())));
    builder.apply(Change::Service(Key::new("new", "api"), Some(service(cluster_ip(1)))));
    let hidden = Some(NamespaceFact { visible_to: Some(VisibleTo::Namespaces(Vec::new())) });
    let cases = [
        ("before its namespace is reported", None, ["10.96.0.1", "NXDOMAIN", "NXDOMAIN"]),
        ("once it is", Some(Some(NamespaceFact::default())), ["10.96.0.1"; 3]),
        ("once it hides its Services", Some(hidden), ["10.96.0.1", "NXDOMAIN", "NXDOMAIN"]),
        ("once it is open again", Some(Some(NamespaceFact::default())), ["10.96.0.1"; 3]),
        ("once it is deleted, before its Service is", Some(None), ["10.96.0.1", "NXDOMAIN", "NXDOMAIN"]),
    ];
    for (case, namespace, expected) in cases {
        if let Some(fact) = namespace {
            builder.apply(Change::Namespace("new".into(), fact));
        }
        let zone = builder.publish().unwrap();
        let name = |name: &str| zone.settings.namespace_name(name).unwrap();
        let (own, other) = (name("new"), name("web"));
        let callers = [Caller::Namespace(&own), Caller::Namespace(&other), Caller::Unknown];
        for (caller, expected) in callers.into_iter().zip(expected) {
            let reply = reply(&zone, caller, &query("api.new.svc.cluster.local A", None), Limit::Stream).unwrap();
            assert!(text(&reply).contains(expected), "{case}: {caller:?}: {}", text(&reply));
        }
    }
}

#[test]
fn the_serial_does_not_decrease_across_restarts() {
    let mut last = 0;
    for start in 0..4 {
        let mut builder = builder();
        // About as fast as a server publishes: every two milliseconds.
        for n in 0..50 {
            builder.apply(Change::Service(Key::new("web", "api"), Some(service(cluster_ip(n)))));
            let serial = builder.publish().unwrap().soa.serial();
            assert!(last == 0 || serial.wrapping_sub(last) as i32 > 0, "start {start}: {serial} after {last}");
            last = serial;
            #[allow(clippy::disallowed_methods)]
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
}

/// A change rebuilds the affected objects and copies one path, regardless of the size of the cluster.
#[test]
fn a_change_costs_the_same_in_a_large_cluster() {
    let mut costs = Vec::new();
    for size in [10u32, 10_000] {
        let mut builder = builder();
        for n in 0..size {
            builder.apply(Change::Service(
                Key::new(&format!("ns-{}", n % 50), &format!("s{n}")),
                Some(service(cluster_ip(n))),
            ));
        }
        builder.apply(Change::Service(Key::new("web", "db"), Some(service(ServiceType::Headless))));
        builder.apply(Change::Slice(Key::new("web", "db-1"), Some(slice("db", &[[10, 1, 0, 1], [10, 1, 0, 2]]))));
        let _held = builder.publish().unwrap();
        builder.apply(Change::Service(Key::new("ns-3", "s3"), Some(service(cluster_ip(60_000)))));
        builder.apply(Change::Slice(Key::new("web", "db-1"), Some(slice("db", &[[10, 1, 0, 1], [10, 1, 0, 3]]))));
        let zone = builder.publish().unwrap();
        assert!(
            text(&reply(&zone, CLIENT, &query("s3.ns-3.svc.cluster.local A", None), Limit::Datagram).unwrap())
                .contains("10.96.234.96")
        );
        costs.push(builder.work());
    }
    assert_eq!(costs[0].rebuilt, costs[1].rebuilt, "{costs:?}");
    // The root, directory and page of two slots; a page of a large map holds a few slots more.
    assert!(costs[1].copied < costs[0].copied + 1000, "{costs:?}");
    assert!(costs[1].copied < 10_000, "{costs:?}");
}

#[test]
fn a_reused_address_belongs_to_its_only_live_pod() {
    let mut builder = builder();
    let pod = |addresses: &[[u8; 4]], host_network| {
        let addresses = addresses.iter().map(|a| IpAddr::from(*a)).collect();
        Some(PodFact { namespace: "".into(), addresses, host_network })
    };
    let address: IpAddr = [10, 1, 0, 1].into();
    let mut namespace_after = |changes: Vec<Change>| {
        changes.into_iter().for_each(|change| builder.apply(change));
        let zone = builder.publish()?;
        zone.namespace_of(address).0.map(|namespace| namespace.text())
    };
    let change = |namespace: &str, name: &str, fact: Option<PodFact>| {
        Change::Pod(PodId::of(namespace, name), fact.map(|fact| PodFact { namespace: namespace.into(), ..fact }))
    };
    assert_eq!(namespace_after(vec![change("web", "a", pod(&[[10, 1, 0, 1]], false))]).as_deref(), Some("web"));
    // The address is reused before the first pod is gone: neither pod is trusted.
    assert_eq!(namespace_after(vec![change("shop", "b", pod(&[[10, 1, 0, 1]], false))]), None);
    assert_eq!(namespace_after(vec![change("web", "a", None)]).as_deref(), Some("shop"));
    // The same pod name with another address.
    assert_eq!(namespace_after(vec![change("shop", "b", pod(&[[10, 1, 0, 2]], false))]), None);
    assert_eq!(
        namespace_after(vec![change("web", "a", pod(&[[10, 1, 0, 1], [10, 1, 0, 9]], false))]).as_deref(),
        Some("web")
    );
    // Host-network pods claim no address.
    assert_eq!(
        namespace_after(vec![change("kube-system", "proxy", pod(&[[10, 1, 0, 1]], true))]).as_deref(),
        Some("web")
    );
    assert_eq!(namespace_after(vec![change("web", "a", None)]), None);
}
