//! Tenants who write objects: what one of them can cost the others.

use std::time::Duration;

use callsign::cluster::manifests;
use serde_json::json;

use crate::common;
use crate::common::follower::{API, Follower, namespace, service, with_api};
use crate::common::scripted::{Api, WatchListSupport};

/// The complaints about the only object in this YAML.
fn complaints(object: &str) -> Vec<String> {
    let (_, rejected) = manifests::read_text(object).unwrap();
    rejected.into_iter().map(|rejected| rejected.reason).collect()
}

#[test]
fn what_one_object_can_hold_is_bounded() {
    let list = |count: usize| (0..count).map(|index| format!("n{index}")).collect::<Vec<_>>().join(",");
    let annotated = |annotation: &str, value: &str| {
        format!(
            "kind: Service\nmetadata: {{name: a, namespace: web, annotations: {{callsign.dev/{annotation}: '{value}'}}}}"
        )
    };
    let ports = |count: usize| {
        let ports: Vec<String> = (1..=count).map(|port| format!("{{name: p{port}, port: {port}}}")).collect();
        format!("kind: Service\nmetadata: {{name: a, namespace: web}}\nspec: {{ports: [{}]}}", ports.join(","))
    };
    let addresses = |count: usize| {
        let all: Vec<String> =
            (0..count).map(|n| format!("{{addresses: [10.{}.{}.{}]}}", n >> 16, n >> 8 & 255, n & 255)).collect();
        format!(
            "kind: EndpointSlice\nmetadata: {{name: a, namespace: web, labels: {{kubernetes.io/service-name: a}}}}\n\
             addressType: IPv4\nendpoints: [{}]",
            all.join(",")
        )
    };
    let hostnames = addresses(50).replace("]}", "], hostname: 'not a label'}");
    let mapped = addresses(1).replace("10.0.0.0", "'::ffff:10.0.0.1'");
    let cases: &[(&str, String, &[&str])] = &[
        ("64 aliases", annotated("alias", &list(64)), &[]),
        ("65 aliases", annotated("alias", &list(65)), &["the limit is 64"]),
        ("64 namespaces", annotated("visible-to", &list(64)), &[]),
        ("65 namespaces", annotated("visible-to", &list(65)), &["only its own namespace sees it"]),
        ("125,000 namespaces", annotated("visible-to", &list(125_000)), &["only its own namespace sees it"]),
        ("an annotation of 5,000 octets", annotated("alias", &"x".repeat(5000)), &["it has 5000 octets"]),
        ("1,000 ports", ports(1000), &[]),
        ("1,001 ports", ports(1001), &["it has 1001 ports"]),
        ("5,000 addresses", addresses(5000), &[]),
        ("5,001 addresses", addresses(5001), &["1 addresses too many"]),
        ("fifty invalid hostnames", hostnames, &["hostname 'not a label' contains ' '"]),
        ("an IPv4-mapped address", mapped, &["write it as IPv4"]),
    ];
    for (case, object, expected) in cases {
        let complaints = complaints(object);
        assert_eq!(complaints.len(), expected.len(), "{case}: {complaints:?}");
        for (complaint, expected) in complaints.iter().zip(*expected) {
            assert!(complaint.contains(expected) && complaint.chars().count() <= 401, "{case}: {complaint}");
        }
    }
}

#[test]
fn complaints_quote_little() {
    let long = "ü".repeat(3000);
    for object in [
        format!("kind: Service\nmetadata: {{name: '{long}', namespace: web}}"),
        format!("kind: Service\nmetadata: {{name: a, namespace: '{long}'}}"),
        format!("kind: Service\nmetadata: {{name: a}}\nspec: {{clusterIP: '{long}'}}"),
        format!("kind: Service\nmetadata: {{name: a}}\nspec: {{type: ExternalName, externalName: '{long}'}}"),
        format!("kind: Service\nmetadata: {{name: a}}\nspec: {{ports: [{{port: 1, protocol: '{long}'}}]}}"),
        format!("kind: Service\nmetadata: {{name: a, annotations: {{callsign.dev/default: '{long}'}}}}"),
        format!("kind: Service\nmetadata: {{name: a, annotations: {{callsign.dev/visible-to: '{long}'}}}}"),
    ] {
        let (_, rejected) = manifests::read_text(&object).unwrap();
        assert_eq!(rejected.len(), 1, "{object:.80}");
        assert!(rejected[0].to_string().chars().count() <= 720, "{}", rejected[0]);
    }
}

/// A Service that lists 60 other namespaces.
fn heavy(name: &str, namespace: &str) -> serde_json::Value {
    let list: Vec<String> = (0..60).map(|index| format!("tenant-{index}")).collect();
    json!({
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "annotations": {"callsign.dev/visible-to": list.join(",")}},
        "spec": {"clusterIP": "10.99.0.1"},
    })
}

fn tenants() -> Api {
    let api = with_api(WatchListSupport::Yes);
    api.put(namespace("greedy"));
    api
}

#[test]
fn a_namespace_over_its_budget_does_not_grow_and_others_do() {
    let api = tenants();
    let follower = Follower::start(&api.kubeconfig(), &["--namespace-budget", "1500000"]);
    follower.wait_for_answer(API, "10.96.0.10");
    for index in 0..60 {
        api.put(heavy(&format!("s{index}"), "greedy"));
    }
    api.put(service("late", "10.96.0.77"));
    follower.wait_for_answer("late.web.svc.cluster.local A", "10.96.0.77");
    let metrics = follower.admin("/metrics");
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let held = value("callsign_table_services");
    assert!((10.0..40.0).contains(&held), "{held} Services are held");
    assert!(value("callsign_objects_rejected_total") >= 30.0);
    // Once objects are gone, others find room.
    for index in 0..60 {
        api.delete("services", "greedy", &format!("s{index}"));
    }
    api.put(json!({"kind": "Service", "metadata": {"name": "small", "namespace": "greedy"}, "spec": {"clusterIP": "10.99.0.2"}}));
    follower.wait_for_answer_within("small.greedy.svc.cluster.local A", "10.99.0.2", Duration::from_secs(5));
}

#[test]
fn a_slice_of_no_service_uses_up_no_budget() {
    let api = tenants();
    let follower = Follower::start(&api.kubeconfig(), &["--namespace-budget", "100000"]);
    follower.wait_for_answer(API, "10.96.0.10");
    for round in 0..200 {
        let endpoints: Vec<_> = (0..100).map(|n| json!({"addresses": [format!("10.1.{round}.{n}")]})).collect();
        api.put(json!({
            "kind": "EndpointSlice", "metadata": {"name": "stray", "namespace": "greedy"},
            "addressType": "IPv4", "endpoints": endpoints,
        }));
    }
    api.put(json!({"kind": "Service", "metadata": {"name": "small", "namespace": "greedy"}, "spec": {"clusterIP": "10.99.0.2"}}));
    follower.wait_for_answer_within("small.greedy.svc.cluster.local A", "10.99.0.2", Duration::from_secs(5));
}

#[test]
fn names_that_slices_share_do_not_multiply_their_ports() {
    // Each pair of slices shares one hostname, so that every name could have a list of ports of its own.
    let slices = 60;
    let mut text = "kind: Service\nmetadata: {name: a, namespace: web}\nspec: {clusterIP: None}\n".to_owned();
    for slice in 0..slices {
        let ports: Vec<String> =
            (0..300).map(|port| format!("{{name: p{slice}-{port}, port: {}}}", 1 + port)).collect();
        let endpoints: Vec<String> = (0..slices)
            .map(|other| {
                let (low, high) = (slice.min(other), slice.max(other));
                format!("{{addresses: [10.1.{slice}.{other}], hostname: e-{low}-{high}}}")
            })
            .collect();
        text += &format!(
            "---\nkind: EndpointSlice\nmetadata: {{name: a-{slice}, namespace: web, labels: {{kubernetes.io/service-name: \
             a}}}}\naddressType: IPv4\nports: [{}]\nendpoints: [{}]\n",
            ports.join(", "),
            endpoints.join(", ")
        );
    }
    let zone = common::zone(&text, &[]);
    let service = zone.services().next().unwrap();
    let ports: usize = service.endpoints.groups.iter().map(|group| group.len()).sum();
    assert!(ports < 60 * 300 + 25_000, "{ports} ports are held");
}
