//! A server that watches a Kubernetes API: the scripted one, which injects the faults of API servers, and a real
//! kube-apiserver if KUBEBUILDER_ASSETS names a folder with `etcd` and `kube-apiserver`.

use std::time::Duration;

use crate::common::follower::{API, Follower, namespace, service, slice, with_api};
use crate::common::real::RealApi;
use crate::common::scripted::{Api, Fault, WatchListSupport};
use serde_json::{Value, json};

#[test]
fn the_server_follows_a_cluster_with_and_without_streamed_lists() {
    for streams in [WatchListSupport::Yes, WatchListSupport::Refused, WatchListSupport::Unknown] {
        let api = with_api(streams);
        // More than two pages of Services.
        for n in 0..1100 {
            api.put(service(&format!("s{n}"), &format!("10.97.{}.{}", n / 250, n % 250)));
        }
        for n in 0..250 {
            api.put(slice(&format!("api-{n}"), "many", &[&format!("10.1.{}.{}", n / 250, n % 250)]));
        }
        api.put(
            json!({"kind": "Service", "metadata": {"name": "many", "namespace": "web"}, "spec": {"clusterIP": "None"}}),
        );
        let follower = Follower::of(&api);
        follower.wait_for_answer(API, "10.96.0.10");
        assert_eq!(follower.ask("s1099.web.svc.cluster.local A"), "10.97.4.99", "{streams:?}");
        assert_eq!(follower.ask("10-1-0-249.many.web.svc.cluster.local A"), "10.1.0.249", "{streams:?}");
        let pages =
            api.requests().iter().filter(|request| request.contains("limit=") && request.contains("/services")).count();
        assert_eq!(pages, if streams == WatchListSupport::Yes { 0 } else { 3 }, "{streams:?}");
        api.put(service("new", "10.96.0.99"));
        follower.wait_for_answer("new.web.svc.cluster.local A", "10.96.0.99");
        api.put(service("new", "10.96.0.98"));
        follower.wait_for_answer("new.web.svc.cluster.local A", "10.96.0.98");
        assert!(api.delete("services", "web", "new"));
        follower.wait_for_answer("new.web.svc.cluster.local A", "NXDOMAIN");
        api.put(slice("api-0", "many", &["10.1.9.9"]));
        follower.wait_for_answer("10-1-9-9.many.web.svc.cluster.local A", "10.1.9.9");
        assert_eq!(follower.ask("10-1-0-0.many.web.svc.cluster.local A"), "NXDOMAIN");
    }
}

#[test]
fn no_name_is_denied_before_the_first_sync() {
    let api = with_api(WatchListSupport::Yes);
    api.fault("endpointslices", Fault::Silence);
    let follower = Follower::of(&api);
    for _ in 0..20 {
        assert_eq!(follower.ask(API), "SERVFAIL");
        std::thread::sleep(Duration::from_millis(10));
    }
    let ready = follower.admin("/ready");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("not ready: endpointslices"), "{ready}");
    // The silent streamed list times out; the server falls back to a paged list.
    follower.wait_for_answer(API, "10.96.0.10");
    assert!(follower.admin("/ready").starts_with("HTTP/1.1 200"));
}

/// A disruption of a watch in prose, and the function that causes it.
type Disruption = (&'static str, fn(&Api));

#[test]
fn changes_arrive_after_every_kind_of_disruption() {
    let disruptions: &[Disruption] = &[
        ("no disruption", |_| {}),
        ("a connection reset", |api| api.break_watches()),
        ("410 as an HTTP status", |api| {
            api.compact();
            api.put(namespace("other"));
            api.compact();
            api.break_watches();
        }),
        ("410 as an ERROR event", |api| {
            api.gone_as_event(true);
            api.put(namespace("other"));
            api.compact();
            api.break_watches();
        }),
        ("a reset, then 500", |api| {
            api.fault("services", Fault::Status(500, "etcd is away".into()));
            api.break_watches();
        }),
        ("a reset, then HTML", |api| {
            api.fault("services", Fault::Status(502, "<html>Bad Gateway</html>".into()));
            api.break_watches();
        }),
        ("a reset, then 429", |api| {
            api.fault("services", Fault::RetryAfter(429, 1));
            api.break_watches();
        }),
        ("a reset, then a truncated JSON object", |api| {
            api.fault("services", Fault::Reset);
            api.break_watches();
        }),
        ("a reset, then an error event", |api| {
            api.fault("services", Fault::ErrorEvent(500));
            api.break_watches();
        }),
        ("a reset, then a line that is not JSON", |api| {
            api.fault("services", Fault::Body("what?\n".into()));
            api.break_watches();
        }),
        ("a store restored from a backup", |api| api.restore(50)),
        ("slow response bodies", |api| {
            api.slow(Some(Duration::from_millis(300)));
            api.compact();
            api.put(namespace("other"));
            api.compact();
            api.break_watches();
        }),
    ];
    for streams in [WatchListSupport::Yes, WatchListSupport::Refused] {
        for (disruption, make) in disruptions {
            let api = with_api(streams);
            println!("{disruption}, {streams:?}");
            api.put(service("old", "10.96.0.30"));
            let follower = Follower::of(&api);
            follower.wait_for_answer(API, "10.96.0.10");
            make(&api);
            api.put(service("api", "10.96.0.20"));
            api.delete("services", "web", "old");
            api.put(service("new", "10.96.0.40"));
            follower.wait_for_answer(API, "10.96.0.20");
            follower.wait_for_answer("old.web.svc.cluster.local A", "NXDOMAIN");
            follower.wait_for_answer("new.web.svc.cluster.local A", "10.96.0.40");
            assert_eq!(api.faults_left(), 0, "{disruption}: every fault was injected");
        }
    }
}

#[test]
fn answers_continue_while_the_api_is_unreachable() {
    let mut api = with_api(WatchListSupport::Yes);
    let follower = Follower::of(&api);
    follower.wait_for_answer(API, "10.96.0.10");
    api.kill();
    for _ in 0..50 {
        assert_eq!(follower.ask(API), "10.96.0.10", "the last zone is still served");
        std::thread::sleep(Duration::from_millis(10));
    }
    let ready = follower.admin("/ready?verbose");
    assert!(ready.starts_with("HTTP/1.1 200") && ready.contains("cannot reach the API"), "{ready}");
    api.put(service("api", "10.96.0.20"));
    api.resume();
    follower.wait_for_answer_within(API, "10.96.0.20", Duration::from_secs(5));
}

#[test]
fn an_invalid_object_is_rejected_without_affecting_others() {
    let api = with_api(WatchListSupport::Yes);
    let long = "x".repeat(64);
    api.put(
        json!({"kind": "Service", "metadata": {"name": long, "namespace": "web"}, "spec": {"clusterIP": "10.96.0.1"}}),
    );
    api.put(json!({"kind": "Service", "metadata": {"name": "odd", "namespace": "web"}, "spec": {"clusterIP": "ten"}}));
    api.put(json!({"kind": "Service", "metadata": {"name": "typed", "namespace": "web"}, "spec": {"ports": "eighty"}}));
    api.put(json!({"kind": "Service", "metadata": {"name": "null", "namespace": "web"}, "spec": null}));
    api.put(json!({"kind": "EndpointSlice", "metadata": {"name": "nulls", "namespace": "web", "labels": null}, "addressType": "IPv4", "endpoints": null, "ports": null}));
    api.put(json!({"kind": "Service", "metadata": {"name": "big", "namespace": "web", "annotations": {"note": "x".repeat(1_500_000)}}, "spec": {"clusterIP": "10.96.0.66"}}));
    let follower = Follower::of(&api);
    follower.wait_for_answer(API, "10.96.0.10");
    follower.wait_for_answer("big.web.svc.cluster.local A", "10.96.0.66");
    assert_eq!(follower.ask("odd.web.svc.cluster.local A"), "NXDOMAIN");
    assert_eq!(follower.ask("typed.web.svc.cluster.local A"), "NXDOMAIN");
    assert_eq!(follower.ask("null.web.svc.cluster.local A"), "NOERROR", "a Service without an address");
    let metrics = follower.admin("/metrics");
    assert!(metrics.contains("callsign_objects_rejected_total 3"), "{metrics}");
    // A valid object that becomes invalid loses its names.
    api.put(json!({"kind": "Service", "metadata": {"name": "api", "namespace": "web"}, "spec": {"clusterIP": "ten"}}));
    follower.wait_for_answer(API, "NXDOMAIN");
}

#[test]
fn the_server_requests_only_the_resources_it_needs() {
    let api = with_api(WatchListSupport::Yes);
    let follower = Follower::start(&api.kubeconfig(), &["--pods", "node", "--node-name", "worker-1"]);
    follower.wait_for_answer(API, "10.96.0.10");
    let mut resources: Vec<String> =
        api.requests().iter().map(|request| request.split('?').next().unwrap().to_owned()).collect();
    resources.sort();
    resources.dedup();
    assert_eq!(
        resources,
        ["/api/v1/namespaces", "/api/v1/pods", "/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices"]
    );
    assert!(
        api.requests()
            .iter()
            .filter(|request| request.starts_with("/api/v1/pods"))
            .all(|request| request.contains("fieldSelector=spec.nodeName%3Dworker-1"))
    );
}

fn pod(namespace: &str, name: &str, phase: &str, address: &str, host_network: bool) -> Value {
    json!({"kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": {"nodeName": "worker-1", "hostNetwork": host_network},
           "status": {"phase": phase, "podIP": address, "podIPs": [{"ip": address}]}})
}

#[test]
fn pod_churn_never_assigns_a_caller_to_the_wrong_namespace() {
    let api = with_api(WatchListSupport::Yes);
    api.put(json!({"kind": "Service", "metadata": {"name": "api", "namespace": "orders"}, "spec": {"clusterIP": "10.96.0.77"}}));
    // Every query in this test comes from 127.0.0.1.
    let follower = Follower::start(&api.kubeconfig(), &["--pods", "all"]);
    let (of_web, of_orders, no_namespace) = ("10.96.0.10", "10.96.0.77", "NXDOMAIN");
    follower.wait_for_answer("api A", no_namespace);
    let mut being_deleted = pod("orders", "b", "Running", "127.0.0.1", false);
    being_deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    let steps: Vec<(&str, Vec<Value>, &str)> = vec![
        ("a pod without an address", vec![pod("web", "a", "Pending", "", false)], no_namespace),
        ("the pod starts to run", vec![pod("web", "a", "Running", "127.0.0.1", false)], of_web),
        (
            "a second pod claims its address: neither is trusted",
            vec![pod("orders", "b", "Running", "127.0.0.1", false)],
            no_namespace,
        ),
        ("the first pod finishes", vec![pod("web", "a", "Succeeded", "127.0.0.1", false)], of_orders),
        ("a host-network pod claims no address", vec![pod("web", "host", "Running", "127.0.0.1", true)], of_orders),
        ("the second pod is being deleted", vec![being_deleted], no_namespace),
        ("the first pod runs again under its old name", vec![pod("web", "a", "Running", "127.0.0.1", false)], of_web),
        ("the first pod changes its address", vec![pod("web", "a", "Running", "127.0.0.2", false)], no_namespace),
        ("a new pod takes the address", vec![pod("orders", "c", "Running", "127.0.0.1", false)], of_orders),
    ];
    for (step, objects, expected) in steps {
        println!("{step}");
        for object in objects {
            api.put(object);
        }
        follower.wait_for_answer("api A", expected);
    }
    api.delete("pods", "orders", "c");
    follower.wait_for_answer("api A", no_namespace);
    // A relist finds the changes that a broken watch missed.
    api.put(pod("web", "a", "Running", "127.0.0.1", false));
    follower.wait_for_answer("api A", of_web);
    api.delete("pods", "web", "a");
    api.put(pod("orders", "d", "Running", "127.0.0.1", false));
    api.compact();
    api.break_watches();
    follower.wait_for_answer("api A", of_orders);
}

#[test]
fn the_server_follows_a_real_api_server() {
    let Some(api) = RealApi::start() else { return };
    api.create(namespace("web"));
    api.create(service("api", "10.96.0.10"));
    let follower = Follower::start(&api.kubeconfig(), &[]);
    follower.wait_for_answer(API, "10.96.0.10");
    follower.wait_for_answer("kubernetes.default.svc.cluster.local A", "10.96.0.1");
    api.create(service("new", "10.96.0.99"));
    follower.wait_for_answer("new.web.svc.cluster.local A", "10.96.0.99");
    api.create(slice("new-1", "headless", &["10.1.0.1", "10.1.0.2"]));
    api.create(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "headless", "namespace": "web"}, "spec": {"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}}));
    follower.wait_for_answer("10-1-0-2.headless.web.svc.cluster.local A", "10.1.0.2");
    api.delete("services", "web", "new");
    follower.wait_for_answer("new.web.svc.cluster.local A", "NXDOMAIN");
    api.delete("endpointslices", "web", "new-1");
    follower.wait_for_answer("headless.web.svc.cluster.local A", "NXDOMAIN");
}
