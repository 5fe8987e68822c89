//! A Callsign server that watches an API server, and objects for that API server.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use callsign::app;
use serde_json::{Value, json};

use super::Scratch;
use super::exchange;
use super::scripted::{Api, WatchListSupport};

/// A Callsign server, in this process, that watches an API server.
pub struct Follower {
    running: Option<app::Running>,
    _config: Scratch,
}

impl Follower {
    pub fn start(kubeconfig: &str, flags: &[&str]) -> Follower {
        let scratch = Scratch::folder("kubeconfig");
        let path = scratch.file("config", kubeconfig);
        let own = [
            "--kubeconfig",
            path.to_str().unwrap(),
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--health",
            "127.0.0.1:0",
            "--workers",
            "1",
        ];
        let flags: Vec<&str> = own.iter().chain(flags).copied().collect();
        Follower { running: Some(app::start(super::config(&flags)).unwrap()), _config: scratch }
    }

    pub fn of(api: &Api) -> Follower {
        Follower::start(&api.kubeconfig(), &[])
    }

    fn address(&self) -> SocketAddr {
        self.running.as_ref().unwrap().addresses[0]
    }

    pub fn health(&self, path: &str) -> String {
        exchange::http_get(self.running.as_ref().unwrap().health, path)
    }

    pub fn admin(&self, path: &str) -> String {
        exchange::http_get(self.running.as_ref().unwrap().admin, path)
    }

    /// Returns the data of the answers, or the rcode if there are none.
    pub fn ask(&self, question: &str) -> String {
        let reply = exchange::udp(self.address(), &super::query(question, Some(1232))).unwrap();
        let text = super::text(&reply);
        let answers: Vec<&str> = text
            .lines()
            .skip(1)
            .filter(|line| !line.starts_with("soa ") && !line.starts_with("glue "))
            .filter_map(|line| line.rsplit(' ').next())
            .collect();
        if answers.is_empty() { text.split([' ', '\n']).next().unwrap().to_owned() } else { answers.join(" ") }
    }

    /// Waits until the answer is `expected`.
    pub fn wait_for_answer(&self, question: &str, expected: &str) {
        self.wait_for_answer_within(question, expected, Duration::from_secs(10));
    }

    pub fn wait_for_answer_within(&self, question: &str, expected: &str, time: Duration) {
        let start = Instant::now();
        loop {
            let found = self.ask(question);
            if found == expected {
                return;
            }
            assert!(
                start.elapsed() < time,
                "{question}: {found}, not {expected}, after {time:?}\n{}",
                self.admin("/ready?verbose")
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.stop();
        }
    }
}

pub fn service(name: &str, address: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "web"},
           "spec": {"clusterIP": address, "clusterIPs": [address], "ports": [{"name": "http", "port": 80}]}})
}

pub fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

pub fn slice(name: &str, service: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
           "metadata": {"name": name, "namespace": "web", "labels": {"kubernetes.io/service-name": service}},
           "endpoints": endpoints, "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]})
}

pub const API: &str = "api.web.svc.cluster.local A";

pub fn with_api(streams: WatchListSupport) -> Api {
    let api = Api::start(streams);
    api.put(namespace("web"));
    api.put(service("api", "10.96.0.10"));
    api
}
