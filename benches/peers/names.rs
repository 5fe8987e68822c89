//! One cluster in the input format of each server, and the questions about it.

use std::fmt::Write;

use serde_json::{Value, json};

/// The numbers of Services of the clusters that are compared.
pub const SIZES: [u32; 3] = [100, 10_000, 100_000];
/// Number of questions, all different if the cluster is that large, and then asked again in the same order.
const QUESTIONS: u32 = 200_000;
pub const ENDPOINTS: u32 = 3;
pub const NAMESPACES: u32 = 50;

/// A cluster. One Service in ten is headless, with [`ENDPOINTS`] endpoints; the others have a ClusterIP.
#[derive(Clone, Copy)]
pub struct Cluster {
    pub services: u32,
}

impl Cluster {
    fn headless(self) -> u32 {
        self.services / 10
    }

    fn with_address(self) -> u32 {
        self.services - self.headless()
    }
}

fn cluster_ip(n: u32) -> String {
    format!("10.{}.{}.{}", 96 + n / 62_500, n / 250 % 250, 1 + n % 250)
}

fn endpoint_ip(n: u32, at: u32) -> String {
    format!("10.{}.{}.{}", 128 + n / 250, n % 250, 1 + at)
}

fn service_name(n: u32) -> String {
    format!("service-{n}.ns-{}.svc.cluster.local", n % NAMESPACES)
}

fn headless_name(n: u32) -> String {
    format!("headless-{n}.ns-{}.svc.cluster.local", n % NAMESPACES)
}

fn reverse(address: &str) -> String {
    let mut octets: Vec<&str> = address.split('.').collect();
    octets.reverse();
    format!("{}.in-addr.arpa", octets.join("."))
}

/// Every object of a cluster.
pub fn objects(cluster: Cluster) -> Vec<Value> {
    let ports = json!([{"name": "http", "port": 80, "protocol": "TCP"}]);
    let mut all: Vec<Value> = (0..NAMESPACES)
        .map(|n| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": format!("ns-{n}")}}))
        .collect();
    all.extend((0..cluster.with_address()).map(|n| {
        json!({"apiVersion": "v1", "kind": "Service",
               "metadata": {"name": format!("service-{n}"), "namespace": format!("ns-{}", n % NAMESPACES)},
               "spec": {"type": "ClusterIP", "clusterIP": cluster_ip(n), "clusterIPs": [cluster_ip(n)], "ports": ports}})
    }));
    for n in 0..cluster.headless() {
        let (name, namespace) = (format!("headless-{n}"), format!("ns-{}", n % NAMESPACES));
        let endpoints: Vec<Value> = (0..ENDPOINTS)
            .map(|at| json!({"addresses": [endpoint_ip(n, at)], "conditions": {"ready": true}}))
            .collect();
        all.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
                        "spec": {"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "ports": ports}}));
        all.push(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                        "metadata": {"name": format!("{name}-abcde"), "namespace": namespace, "labels": {"kubernetes.io/service-name": name}},
                        "endpoints": endpoints, "ports": ports}));
    }
    all
}

/// The same names as zone files: `cluster.local` and `10.in-addr.arpa`.
pub fn zone_files(cluster: Cluster) -> (String, String) {
    let soa = "@ 30 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 30\n@ 30 IN NS ns.dns.cluster.local.\n";
    let (mut forward, mut backward) = (format!("{soa}ns.dns 30 IN A 10.96.0.10\n"), soa.to_owned());
    let mut add = |forward: &mut String, name: &str, address: &str| {
        let _ = writeln!(forward, "{name}. 30 IN A {address}");
        let _ = writeln!(backward, "{}. 30 IN PTR {name}.", reverse(address));
    };
    for n in 0..cluster.with_address() {
        let name = service_name(n);
        add(&mut forward, &name, &cluster_ip(n));
        let _ = writeln!(forward, "_http._tcp.{name}. 30 IN SRV 0 100 80 {name}.");
    }
    for n in 0..cluster.headless() {
        let name = headless_name(n);
        for at in 0..ENDPOINTS {
            let address = endpoint_ip(n, at);
            let endpoint = format!("{}.{name}", address.replace('.', "-"));
            let _ = writeln!(forward, "{name}. 30 IN A {address}");
            let _ = writeln!(forward, "_http._tcp.{name}. 30 IN SRV 0 33 80 {endpoint}.");
            add(&mut forward, &endpoint, &address);
        }
    }
    (forward, backward)
}

/// Questions in the format of dnsperf, a name and a type per line, in random order, which is the same every time.
pub fn questions(cluster: Cluster, mixed: bool) -> String {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut dice = |sides: u32| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as u32 % sides
    };
    let mut lines = String::new();
    for _ in 0..QUESTIONS {
        let (n, m) = (dice(cluster.with_address()), dice(cluster.headless()));
        let _ = match if mixed { dice(100) } else { 0 } {
            0..35 => writeln!(lines, "{} A", service_name(n)),
            35..50 => writeln!(lines, "{} AAAA", service_name(n)),
            50..60 => writeln!(lines, "{} A", headless_name(m)),
            60..70 => writeln!(lines, "_http._tcp.{} SRV", service_name(n)),
            70..80 => writeln!(lines, "{} PTR", reverse(&cluster_ip(n))),
            _ => writeln!(lines, "missing-{n}.ns-{}.svc.cluster.local A", n % NAMESPACES),
        };
    }
    lines
}
