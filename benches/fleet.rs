//! What many servers ask of one API: `cargo bench --bench fleet [-- SERVERS [SECONDS]]`.
//!
//! Starts the scripted API server with 1,000 Services and their EndpointSlices, and SERVERS (50) servers that watch it.
//! Counts requests and octets while they start, while nothing changes for SECONDS (600), while one Service changes, and
//! after the API server was down for five seconds.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    missing_docs
)]

#[path = "../tests/it/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::Scratch;
use common::process::Server;
use common::scripted::{Api, WatchListSupport};
use serde_json::{Value, json};

const SERVICES: u32 = 1000;
const CHANGES: u32 = 100;
const QUESTION: &str = "service-7.ns-7.svc.cluster.local A";

fn service(n: u32, address: &str) -> Value {
    json!({"kind": "Service", "metadata": {"name": format!("service-{n}"), "namespace": format!("ns-{}", n % 50)},
           "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
                    "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}})
}

fn slice(n: u32) -> Value {
    let name = format!("service-{n}");
    let endpoints: Vec<Value> = (0..3)
        .map(|at| json!({"addresses": [format!("10.128.{}.{}", n / 80, 1 + n % 80 * 3 + at)], "conditions": {"ready": true}}))
        .collect();
    json!({"kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
           "metadata": {"name": format!("{name}-abcde"), "namespace": format!("ns-{}", n % 50),
                        "labels": {"kubernetes.io/service-name": name}},
           "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]})
}

/// Counts requests and octets since its creation.
struct Meter<'a> {
    api: &'a Api,
    requests: usize,
    octets: u64,
    start: Instant,
}

impl<'a> Meter<'a> {
    fn new(api: &'a Api) -> Meter<'a> {
        Meter { api, requests: api.requests().len(), octets: api.octets(), start: Instant::now() }
    }

    fn row(&self, phase: &str, servers: usize) {
        let requests = self.api.requests().split_off(self.requests);
        let lists = requests.iter().filter(|request| is_list(request)).count();
        let checks = requests.iter().filter(|request| is_check(request)).count();
        println!(
            "| {phase} | {:.0} s | {:.2} | {:.2} | {:.2} | {:.1} |",
            self.start.elapsed().as_secs_f64(),
            requests.len() as f64 / servers as f64,
            lists as f64 / servers as f64,
            checks as f64 / servers as f64,
            (self.api.octets() - self.octets) as f64 / 1000.0 / servers as f64,
        );
    }
}

/// Whether a request asks for all objects, and not for what has changed since a version.
fn is_list(request: &str) -> bool {
    request.contains("sendInitialEvents=true") || !request.contains("watch=") && !is_check(request)
}

/// Whether a request is a page of the self-check, which has only the names and versions of objects.
fn is_check(request: &str) -> bool {
    request.contains("resourceVersionMatch=NotOlderThan") && !request.contains("watch=")
        || request.contains("continue=")
}

fn wait_for_all(servers: &[Server], expected: &str) {
    for server in servers {
        server.wait_for_answer(QUESTION, expected, Duration::from_secs(120));
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let count: usize = arguments.next().map_or(50, |text| text.parse().expect("a number of servers"));
    let idle: u64 = arguments.next().map_or(600, |text| text.parse().expect("a number of seconds"));
    let scratch = Scratch::folder("fleet");
    let mut api = Api::start(WatchListSupport::Yes);
    for n in 0..50 {
        api.put(json!({"kind": "Namespace", "metadata": {"name": format!("ns-{n}")}}));
    }
    for n in 0..SERVICES {
        api.put(service(n, &format!("10.96.{}.{}", n / 250, 1 + n % 250)));
        api.put(slice(n));
    }
    let kubeconfig = scratch.file("kubeconfig", &api.kubeconfig());
    println!(
        "{count} servers, {SERVICES} Services; requests, whole lists and pages of the self-check among them, and kB, of each server\n"
    );
    println!("| phase | duration | requests | lists | self-check | kB |\n|---|---|---|---|---|---|");

    let meter = Meter::new(&api);
    let start = |_| Server::start(&["--workers", "1", "--kubeconfig", kubeconfig.to_str().unwrap()], None);
    let servers: Vec<Server> = (0..count).map(start).collect();
    wait_for_all(&servers, "10.96.0.8");
    meter.row("start", count);

    let meter = Meter::new(&api);
    std::thread::sleep(Duration::from_secs(idle));
    meter.row("nothing changes", count);

    let meter = Meter::new(&api);
    for n in 0..CHANGES {
        api.put(service(7, &format!("10.97.0.{n}")));
    }
    wait_for_all(&servers, &format!("10.97.0.{}", CHANGES - 1));
    meter.row(&format!("{CHANGES} changes of a Service"), count);

    // All servers lose their watches at once. They should not all come back in the same second.
    api.kill();
    std::thread::sleep(Duration::from_secs(5));
    api.resume();
    let meter = Meter::new(&api);
    let (mut seen, mut most) = (meter.requests, 0);
    api.put(service(7, "10.98.0.1"));
    for _ in 0..30 {
        std::thread::sleep(Duration::from_secs(1));
        let now = api.requests().len();
        most = most.max(now - seen);
        seen = now;
    }
    wait_for_all(&servers, "10.98.0.1");
    meter.row("the API server restarts", count);
    println!("\nmost requests in a second after the restart: {most}");
}
