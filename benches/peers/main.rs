//! Callsign compared with other servers: `cargo bench --bench peers [-- ROUNDS [SECONDS [SERVICES]]]`.
//!
//! Starts a UDP echo (the floor: the kernel's cost of carrying two datagrams), Callsign, NSD, Knot DNS, and CoreDNS if
//! CALLSIGN_COREDNS names its binary, with the same names and one worker each: clusters of 100, 10,000 and 100,000
//! Services, or of one number that is given. CALLSIGN_BEFORE may name another binary of Callsign, to compare commits.
//! The servers are pinned to one core and dnsperf to another, and each server is queried in turn, round by round. Needs
//! the Debian packages dnsperf, nsd and knot. Servers that are not installed are reported and left out.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    unsafe_code,
    missing_docs
)]

#[path = "../../tests/it/common/mod.rs"]
mod common;
mod echo;
mod measure;
mod names;

use std::path::Path;

use common::Scratch;
use measure::{Figures, Server, free_port, median, pinned, which};
use names::Cluster;

/// A question that every server can answer.
const KNOWN: &str = "service-1.ns-1.svc.cluster.local A";

fn callsign(name: &'static str, program: &Path, cluster: &Path) -> Server {
    let port = free_port();
    let mut command = pinned(program);
    command.args([
        "serve",
        "--listen",
        &format!("127.0.0.1:{port}"),
        "--admin",
        "127.0.0.1:0",
        "--health",
        "127.0.0.1:0",
        "--workers",
        "1",
    ]);
    command.args(["--upstream", "none"]);
    measure::start(KNOWN, name, port, command.arg("--manifests").arg(cluster))
}

fn nsd(scratch: &Scratch, program: &Path) -> Server {
    let port = free_port();
    let folder = scratch.0.display();
    let text = format!(
        "server:\n server-count: 1\n ip-address: 127.0.0.1@{port}\n username: \"\"\n chroot: \"\"\n pidfile: \"{folder}/nsd.pid\"\n \
         xfrdfile: \"{folder}/xfrd.state\"\n zonelistfile: \"{folder}/nsd.list\"\n xfrdir: \"{folder}\"\n zonesdir: \"{folder}\"\n database: \"\"\n rrl-ratelimit: 0\n \
         rrl-whitelist-ratelimit: 0\nremote-control:\n control-enable: no\n\
         zone:\n name: cluster.local\n zonefile: forward\nzone:\n name: 10.in-addr.arpa\n zonefile: backward\n"
    );
    measure::start(KNOWN, "NSD", port, pinned(program).arg("-d").arg("-c").arg(scratch.file("nsd.conf", &text)))
}

fn knot(scratch: &Scratch, program: &Path) -> Server {
    let port = free_port();
    let folder = scratch.0.display();
    let text = format!(
        "server:\n  rundir: \"{folder}\"\n  listen: 127.0.0.1@{port}\n  udp-workers: 1\n  tcp-workers: 1\n  background-workers: 1\n\
         database:\n  storage: \"{folder}/knot\"\n\
         template:\n  - id: default\n    storage: \"{folder}\"\n    zonefile-sync: -1\n    journal-content: none\n\
         zone:\n  - domain: cluster.local\n    file: forward\n  - domain: 10.in-addr.arpa\n    file: backward\n"
    );
    measure::start(KNOWN, "Knot DNS", port, pinned(program).arg("-c").arg(scratch.file("knot.conf", &text)))
}

fn coredns(scratch: &Scratch, program: &Path, kubeconfig: &Path) -> Server {
    let port = free_port();
    // The Corefile that installers write, without forwarding.
    let text = format!(
        ".:{port} {{\n bind 127.0.0.1\n errors\n health 127.0.0.1:{}\n ready 127.0.0.1:{}\n \
         kubernetes cluster.local in-addr.arpa ip6.arpa {{\n  kubeconfig {}\n  pods insecure\n  ttl 30\n }}\n \
         prometheus 127.0.0.1:{}\n cache 30\n}}\n",
        free_port(),
        free_port(),
        kubeconfig.display(),
        free_port()
    );
    let mut command = pinned(program);
    command.arg("-conf").arg(scratch.file("Corefile", &text));
    measure::start(KNOWN, "CoreDNS", port, &mut command)
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let first = arguments.next();
    if first.as_deref() == Some("--echo") {
        echo::run(&arguments.next().expect("an address"));
    }
    let rounds: usize = first.and_then(|text| text.parse().ok()).unwrap_or(5);
    let seconds: f64 = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(5.0);
    if which("dnsperf").is_none() {
        println!("dnsperf is not installed; run apt-get install dnsperf nsd knot");
        return;
    }
    let sizes =
        arguments.next().map_or(names::SIZES.to_vec(), |text| vec![text.parse().expect("a number of Services")]);
    for services in sizes {
        compare(Cluster { services }, rounds, seconds);
    }
}

/// Runs all servers with one cluster, and prints a table for each mix of questions.
fn compare(cluster: Cluster, rounds: usize, seconds: f64) {
    let scratch = Scratch::folder("peers");
    let (forward, backward) = names::zone_files(cluster);
    scratch.file("forward", &forward);
    scratch.file("backward", &backward);
    std::fs::create_dir_all(scratch.0.join("knot")).unwrap();
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": names::objects(cluster)});
    let list = scratch.file("cluster.json", &list.to_string());
    let own = Path::new(env!("CARGO_BIN_EXE_callsign"));
    let mut servers = vec![measure::echo(KNOWN), callsign("Callsign", own, &list)];
    if let Some(before) = std::env::var_os("CALLSIGN_BEFORE") {
        servers.push(callsign("Callsign before", Path::new(&before), &list));
    }
    match which("nsd") {
        Some(program) => servers.push(nsd(&scratch, &program)),
        None => println!("NSD is not installed"),
    }
    match which("knotd") {
        Some(program) => servers.push(knot(&scratch, &program)),
        None => println!("Knot DNS is not installed"),
    }
    // CoreDNS reads the cluster from an API, as it does in production.
    let api = std::env::var_os("CALLSIGN_COREDNS").map(|program| {
        let api = common::scripted::Api::start(common::scripted::WatchListSupport::Yes);
        for object in names::objects(cluster) {
            api.put(object);
        }
        let kubeconfig = scratch.file("kubeconfig", &api.kubeconfig());
        servers.push(coredns(&scratch, Path::new(&program), &kubeconfig));
        api
    });
    for (mix, mixed) in [("all A", false), ("A, AAAA, headless, SRV, PTR, 20 % NXDOMAIN", true)] {
        let questions = scratch.file("questions", &names::questions(cluster, mixed));
        let mut full: Vec<Vec<Figures>> = vec![Vec::new(); servers.len()];
        let mut half: Vec<Vec<Figures>> = vec![Vec::new(); servers.len()];
        for server in &servers {
            measure::ask(server, &questions, 0.5, None);
        }
        for _ in 0..rounds {
            for (server, runs) in servers.iter().zip(&mut full) {
                runs.push(measure::ask(server, &questions, seconds, None));
            }
        }
        // Half of NSD's maximum rate for all servers; a server that cannot reach it runs at half of its own maximum.
        let best = |runs: &[Figures]| median(runs.iter().map(|run| run.answers_per_second).collect());
        let reference = servers.iter().position(|server| server.name == "NSD").unwrap_or(0);
        let rate = best(&full[reference]) / 2.0;
        for _ in 0..rounds {
            for ((server, runs), full) in servers.iter().zip(&mut half).zip(&full) {
                runs.push(measure::ask(server, &questions, seconds, Some(rate.min(best(full) / 2.0))));
            }
        }
        println!(
            "\n{} Services, {mix}: medians of {rounds} rounds of {seconds} s; latency at {rate:.0} queries per second\n",
            cluster.services
        );
        println!("| | answers per second | CPU µs per answer | times the floor | mean µs | p99 µs | lost |");
        println!("|---|---|---|---|---|---|---|");
        let of = |runs: &[Figures], what: fn(&Figures) -> f64| median(runs.iter().map(what).collect());
        // Each round is compared with the floor of the same round, because disturbances of the machine affect both.
        let times = |runs: &[Figures]| {
            median(runs.iter().zip(&full[0]).map(|(run, floor)| run.microseconds / floor.microseconds).collect())
        };
        for ((server, full), half) in servers.iter().zip(&full).zip(&half) {
            println!(
                "| {} | {:.0} | {:.2} | {:.2} | {:.0} | {:.0} | {:.0} |",
                server.name,
                of(full, |run| run.answers_per_second),
                of(full, |run| run.microseconds),
                times(full),
                of(half, |run| run.mean),
                of(half, |run| run.p99),
                full.iter().chain(half).map(|run| run.lost).sum::<f64>(),
            );
        }
    }
    drop(servers);
    drop(api);
}
