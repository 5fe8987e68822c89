//! A large cluster, from start to a rollout: `cargo bench --bench scale`.
//!
//! Starts the scripted API server (a real one if KUBEBUILDER_ASSETS names a folder with `etcd` and `kube-apiserver`)
//! with 10,000 Services, 1,000 headless Services of 100 endpoints and 500 namespaces. Runs Callsign against it and
//! prints the costs, then repeats that with 150,000 pods.
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

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::process::Server;
use common::real::RealApi;
use common::scripted::{Api, WatchListSupport};
use common::{Scratch, query, text};
use serde_json::{Value, json};

const SERVICES: u32 = 10_000;
const HEADLESS: u32 = 1_000;
const ENDPOINTS: u32 = 100;
const NAMESPACES: u32 = 500;
const PODS: u32 = 150_000;
/// A real API takes a few milliseconds per change: 500 changes a second need several writers.
const WRITERS: u32 = 4;

enum Cluster {
    Scripted(Api),
    RealApi(RealApi),
}

impl Cluster {
    fn start() -> Cluster {
        RealApi::start().map_or_else(|| Cluster::Scripted(Api::start(WatchListSupport::Yes)), Cluster::RealApi)
    }

    fn create(&self, object: Value) {
        match self {
            Cluster::Scripted(api) => drop(api.put(object)),
            Cluster::RealApi(api) => api.create(object),
        }
    }

    fn replace(&self, object: Value) {
        match self {
            Cluster::Scripted(api) => drop(api.put(object)),
            Cluster::RealApi(api) => api.replace(object),
        }
    }

    fn kubeconfig(&self) -> String {
        match self {
            Cluster::Scripted(api) => api.kubeconfig(),
            Cluster::RealApi(api) => api.kubeconfig(),
        }
    }
}

fn service(n: u32) -> Value {
    let address = format!("10.96.{}.{}", 1 + n / 250, 1 + n % 250);
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("service-{n}"), "namespace": format!("ns-{}", n % NAMESPACES), "labels": {"app": format!("service-{n}")}},
           "spec": {"clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"], "selector": {"app": format!("service-{n}")}, "type": "ClusterIP",
                    "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]}})
}

fn headless(n: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("headless-{n}"), "namespace": format!("ns-{}", n % NAMESPACES)},
           "spec": {"clusterIP": "None", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}})
}

fn slice(n: u32, first: u32) -> Value {
    let endpoints: Vec<Value> = (0..ENDPOINTS)
        .map(|at| {
            let index = n * ENDPOINTS + at;
            let address = if at == 0 { first } else { u32::from_be_bytes([10, 128, 0, 0]) + index };
            json!({"addresses": [std::net::Ipv4Addr::from(address).to_string()], "conditions": {"ready": true, "serving": true, "terminating": false},
                   "nodeName": format!("node-{}", index % 500), "targetRef": {"kind": "Pod", "name": format!("headless-{n}-{at}"), "namespace": format!("ns-{}", n % NAMESPACES), "uid": format!("7f0d2c1e-0000-4000-8000-{index:012}")}})
        })
        .collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
           "metadata": {"name": format!("headless-{n}-abcde"), "namespace": format!("ns-{}", n % NAMESPACES), "labels": {"kubernetes.io/service-name": format!("headless-{n}")}},
           "endpoints": endpoints, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}]})
}

/// The address of the first endpoint of headless Service `n` after change number `change`.
fn nth_address(n: u32, change: u32) -> u32 {
    u32::from_be_bytes([10, 192, 0, 0]) + n * 4096 + change % 4096
}

struct Client(UdpSocket);

impl Client {
    fn of(server: &Server) -> Client {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(server.dns).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        Client(socket)
    }

    fn ask(&self, query: &[u8]) -> Vec<u8> {
        let mut reply = vec![0; 4096];
        self.0.send(query).unwrap();
        let length = self.0.recv(&mut reply).unwrap();
        reply.truncate(length);
        reply
    }
}

fn cpu_seconds(server: &Server) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.child.id())).unwrap();
    let fields: Vec<f64> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse().unwrap())
        .collect();
    (fields[0] + fields[1]) / 100.0
}

fn megabytes(server: &Server, key: &str) -> f64 {
    server.status(key) as f64 / 1024.0
}

fn print(what: &str, value: impl std::fmt::Display) {
    println!("{what:58} {value}");
}

fn percentiles(what: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    print(what, format!("median {:.2}, p99 {:.2}, max {:.2} ms", at(0.5), at(0.99), at(1.0)));
}

/// Sum and count of a histogram of the server's metrics.
fn histogram(server: &Server, name: &str) -> (f64, f64) {
    let metrics = server.get("/metrics");
    let sum = |suffix: &str| -> f64 {
        let lines = metrics.lines().filter(|line| line.starts_with(&format!("{name}_{suffix}")));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    (sum("sum"), sum("count"))
}

/// Measures the time from a change of a slice to the first answer that reflects it, in milliseconds.
fn latency(cluster: &Cluster, client: &Client, rounds: u32, offset: u32) -> Vec<f64> {
    // Without this, the kernel extends short sleeps by 50 µs.
    let _ = std::fs::write(format!("/proc/{}/timerslack_ns", std::process::id()), "1000");
    let n = 7;
    (0..rounds)
        .map(|round| {
            let address = nth_address(n, offset + round);
            let name = std::net::Ipv4Addr::from(address).to_string().replace('.', "-");
            let question = query(&format!("{name}.headless-{n}.ns-{n}.svc.cluster.local A"), None);
            let object = slice(n, address);
            let start = Instant::now();
            cluster.replace(object);
            let put = start.elapsed();
            // A short pause, so that the client does not take the CPU from the server.
            while client.ask(&question)[3] & 15 != 0 {
                std::thread::sleep(Duration::from_micros(20));
            }
            std::thread::sleep(Duration::from_millis(5));
            // The measurement starts when the API has accepted the change, which takes the API some time.
            (start.elapsed() - Duration::from_millis(5)).saturating_sub(put).as_secs_f64() * 1e3
        })
        .collect()
}

fn start(cluster: &Cluster, scratch: &Scratch, flags: &[&str]) -> (Server, f64) {
    let path = scratch.file("kubeconfig", &cluster.kubeconfig());
    let all: Vec<&str> =
        ["--kubeconfig", path.to_str().unwrap(), "--workers", "1"].iter().chain(flags).copied().collect();
    let started = Instant::now();
    let server = Server::start(&all, None);
    let client = Client::of(&server);
    let question = query("service-9999.ns-499.svc.cluster.local A", None);
    while client.ask(&question)[3] & 15 != 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let ready = started.elapsed().as_secs_f64();
    assert!(text(&client.ask(&question)).contains("10.96.40.250"));
    (server, ready)
}

fn main() {
    let scratch = Scratch::folder("scale");
    let cluster = Cluster::start();
    let kind = if matches!(cluster, Cluster::RealApi(_)) { "a real kube-apiserver" } else { "the scripted API server" };
    println!(
        "{SERVICES} Services, {HEADLESS} headless Services of {ENDPOINTS} endpoints, {NAMESPACES} namespaces, {kind}\n"
    );
    for n in 0..NAMESPACES {
        cluster.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": format!("ns-{n}")}}));
    }
    for n in 0..SERVICES {
        cluster.create(service(n));
    }
    for n in 0..HEADLESS {
        cluster.create(headless(n));
        cluster.create(slice(n, nth_address(n, 0)));
    }
    let (server, ready) = start(&cluster, &scratch, &[]);
    print("from start to the first correct answer", format!("{ready:.2} s"));
    print("CPU time until ready", format!("{:.2} s", cpu_seconds(&server)));
    std::thread::sleep(Duration::from_secs(3));
    let settled = megabytes(&server, "VmRSS:");
    print("resident memory, settled", format!("{settled:.1} MB"));
    print("resident memory, peak since start", format!("{:.1} MB", megabytes(&server, "VmHWM:")));
    if let Cluster::Scripted(api) = &cluster {
        // A full relist: the history is gone, and every watch breaks.
        std::fs::write(format!("/proc/{}/clear_refs", server.child.id()), "5").unwrap();
        let before = cpu_seconds(&server);
        let lists = || api.requests().iter().filter(|request| request.contains("sendInitialEvents")).count();
        let (first, start) = (lists(), Instant::now());
        api.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "new"}}));
        api.compact();
        api.break_watches();
        while lists() < first + 2 {
            std::thread::sleep(Duration::from_millis(5));
        }
        api.put(slice(9, nth_address(9, 3)));
        let client = Client::of(&server);
        let name = std::net::Ipv4Addr::from(nth_address(9, 3)).to_string().replace('.', "-");
        while client.ask(&query(&format!("{name}.headless-9.ns-9.svc.cluster.local A"), None))[3] & 15 != 0 {}
        print(
            "full relist, including disconnect and backoff",
            format!("{:.2} s, {:.2} s of CPU", start.elapsed().as_secs_f64(), cpu_seconds(&server) - before),
        );
        std::thread::sleep(Duration::from_secs(2));
        let peak = megabytes(&server, "VmHWM:");
        print("resident memory during a relist", format!("{peak:.1} MB, {:.2} times settled", peak / settled));
    }
    print("bytes per endpoint, all included", format!("{:.0}", settled * 1048576.0 / f64::from(HEADLESS * ENDPOINTS)));
    let client = Client::of(&server);
    let before = histogram(&server, "callsign_publish_seconds");
    percentiles("event to answer, idle", latency(&cluster, &client, 300, 1));
    let after = histogram(&server, "callsign_publish_seconds");
    let publish = (after.0 - before.0) / (after.1 - before.1) * 1e3;
    print("of which building and publishing the snapshot", format!("mean {publish:.3} ms"));
    // 500 changes a second, while another client queries names that never change.
    let (stop, changes, wrong, asked) =
        (Arc::new(AtomicBool::new(false)), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let times = std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (stop, changes, cluster) = (&stop, &changes, &cluster);
            scope.spawn(move || {
                let start = Instant::now();
                let mut done = writer;
                while !stop.load(Ordering::Relaxed) {
                    let n = 20 + done % 900;
                    if (done / WRITERS).is_multiple_of(2) {
                        cluster.replace(slice(n, nth_address(n, 1 + done / 900)));
                    } else {
                        cluster.replace(service(n));
                    }
                    done += WRITERS;
                    changes.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep((Duration::from_millis(2) * done).saturating_sub(start.elapsed()));
                }
            });
        }
        scope.spawn(|| {
            let client = Client::of(&server);
            let mut n = 0u32;
            while !stop.load(Ordering::Relaxed) {
                n = (n + 7) % SERVICES;
                let reply =
                    text(&client.ask(&query(&format!("service-{n}.ns-{}.svc.cluster.local A", n % NAMESPACES), None)));
                let right = format!("10.96.{}.{}", 1 + n / 250, 1 + n % 250);
                wrong.fetch_add(u64::from(!reply.ends_with(&right)), Ordering::Relaxed);
                asked.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        let start = Instant::now();
        let times = latency(&cluster, &client, 1000, 1000);
        let rate = changes.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        print("changes a second", format!("{rate:.0}"));
        times
    });
    percentiles("event to answer, during these changes", times);
    print(
        "queries during these changes, and wrong or missing answers",
        format!("{}, {}", asked.into_inner(), wrong.into_inner()),
    );
    print("resident memory at the end", format!("{:.1} MB", megabytes(&server, "VmRSS:")));
    drop(server);
    if let Cluster::Scripted(api) = &cluster {
        for n in 0..PODS {
            let address = std::net::Ipv4Addr::from(u32::from_be_bytes([10, 128, 0, 0]) + n).to_string();
            api.put(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("deployment-{}-7f9c6d5b8-{n:05}", n / 20), "namespace": format!("ns-{}", n % NAMESPACES)},
                           "spec": {"nodeName": format!("node-{}", n % 500)}, "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}}));
        }
        api.compact();
        let (server, ready) = start(&cluster, &scratch, &["--pods", "all"]);
        std::thread::sleep(Duration::from_secs(3));
        let with = megabytes(&server, "VmRSS:");
        print(&format!("with {PODS} pods: from start to the first correct answer"), format!("{ready:.2} s"));
        print(
            &format!("with {PODS} pods: resident memory, settled"),
            format!("{with:.1} MB, {:.1} MB more", with - settled),
        );
    }
}
