//! Cached and forwarded replies, compared with other servers: `cargo bench --bench forward [-- ROUNDS [SECONDS]]`.
//!
//! Hits: 5,000 names that every server has cached. Misses: names that have never been queried before. Each server has
//! one worker and runs on one core; dnsperf and the upstream, an NSD, run on another. Needs the Debian packages dnsperf
//! and nsd. Unbound and dnsdist take part if they are installed, CoreDNS if CALLSIGN_COREDNS names its binary.
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

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use common::Scratch;
use measure::{Figures, Server, free_port, median, pinned, which};

/// Number of names that are queried repeatedly.
const NAMES: u32 = 5000;
/// Number of names that are queried once: more than a run can query.
const FRESH: u32 = 400_000;
/// A question that every server can answer.
const KNOWN: &str = "n1.hit.example A";

fn nsd(scratch: &Scratch, program: &Path) -> Server {
    let port = free_port();
    let folder = scratch.0.display();
    let mut zone = "@ 3600 IN SOA ns.example. hostmaster.example. 1 7200 1800 86400 60\n@ 3600 IN NS ns.example.\n\
                    ns 3600 IN A 127.0.0.1\n*.miss 3600 IN A 192.0.2.1\n"
        .to_owned();
    for index in 0..NAMES {
        let _ = writeln!(zone, "n{index}.hit 3600 IN A 10.1.{}.{}", index / 250, index % 250);
    }
    scratch.file("example", &zone);
    let text = format!(
        "server:\n server-count: 1\n ip-address: 127.0.0.1@{port}\n username: \"\"\n chroot: \"\"\n pidfile: \"{folder}/nsd.pid\"\n \
         xfrdfile: \"{folder}/xfrd.state\"\n zonelistfile: \"{folder}/nsd.list\"\n xfrdir: \"{folder}\"\n zonesdir: \"{folder}\"\n database: \"\"\n \
         rrl-ratelimit: 0\n rrl-whitelist-ratelimit: 0\nremote-control:\n control-enable: no\nzone:\n name: example\n zonefile: example\n"
    );
    // Not on the core of the servers that query it.
    let mut command = Command::new("taskset");
    command.args(["-c", measure::CLIENT_CORE]).arg(program).stdout(Stdio::null()).stderr(Stdio::null());
    measure::start(KNOWN, "upstream", port, command.arg("-d").arg("-c").arg(scratch.file("nsd.conf", &text)))
}

fn callsign(name: &'static str, scratch: &Scratch, upstream: &str) -> Server {
    let port = free_port();
    // The names of the hits also exist in the cluster, to compare answers from the zone in the same run.
    let items: Vec<_> = (0..NAMES)
        .map(|index| {
            serde_json::json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("n{index}"), "namespace": "hit"},
                               "spec": {"clusterIP": format!("10.1.{}.{}", index / 250, index % 250)}})
        })
        .collect();
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": items});
    let file = scratch.file("cluster.json", &list.to_string());
    let mut command = pinned(Path::new(env!("CARGO_BIN_EXE_callsign")));
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
    measure::start(KNOWN, name, port, command.args(["--upstream", upstream, "--manifests"]).arg(file))
}

fn unbound(scratch: &Scratch, program: &Path, upstream: &str) -> Server {
    let port = free_port();
    let folder = scratch.0.display();
    let text = format!(
        "server:\n directory: \"{folder}\"\n username: \"\"\n chroot: \"\"\n pidfile: \"{folder}/unbound.pid\"\n interface: 127.0.0.1@{port}\n \
         use-syslog: no\n do-daemonize: no\n num-threads: 1\n module-config: \"iterator\"\n do-not-query-localhost: no\n \
         outgoing-range: 4096\n num-queries-per-thread: 2048\n msg-cache-size: 64m\n rrset-cache-size: 64m\n\
         remote-control:\n control-enable: no\nforward-zone:\n name: \".\"\n forward-addr: {}\n",
        upstream.replace(':', "@")
    );
    measure::start(KNOWN, "Unbound", port, pinned(program).arg("-d").arg("-c").arg(scratch.file("unbound.conf", &text)))
}

fn dnsdist(scratch: &Scratch, program: &Path, upstream: &str) -> Server {
    let port = free_port();
    let text = format!(
        "setLocal('127.0.0.1:{port}')\nnewServer({{address='{upstream}', healthCheckMode='up'}})\n\
         getPool(''):setCache(newPacketCache(1000000))\nsetSecurityPollSuffix('')\n"
    );
    let mut command = pinned(program);
    command.args(["--supervised", "--disable-syslog", "-C"]).arg(scratch.file("dnsdist.conf", &text));
    measure::start(KNOWN, "dnsdist", port, &mut command)
}

fn coredns(scratch: &Scratch, program: &Path, upstream: &str) -> Server {
    let port = free_port();
    let text = format!(".:{port} {{\n bind 127.0.0.1\n errors\n cache 3600\n forward . {upstream}\n}}\n");
    let mut command = pinned(program);
    command.arg("-conf").arg(scratch.file("Corefile", &text));
    measure::start(KNOWN, "CoreDNS", port, &mut command)
}

fn questions(scratch: &Scratch, domain: &str, count: u32, prefix: &str) -> std::path::PathBuf {
    let mut text = String::new();
    for index in 0..count {
        let _ = writeln!(text, "{prefix}{index}.{domain} A");
    }
    scratch.file("questions", &text)
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let first = arguments.next();
    if first.as_deref() == Some("--echo") {
        echo::run(&arguments.next().expect("an address"));
    }
    let rounds: usize = first.and_then(|text| text.parse().ok()).unwrap_or(5);
    let seconds: f64 = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(5.0);
    let (Some(_), Some(program)) = (which("dnsperf"), which("nsd")) else {
        println!("dnsperf or nsd is not installed; run apt-get install dnsperf nsd unbound dnsdist");
        return;
    };
    let scratch = Scratch::folder("forward");
    let upstream_server = nsd(&scratch, &program);
    let upstream = format!("127.0.0.1:{}", upstream_server.port);
    let mut servers = vec![measure::echo(KNOWN), callsign("Callsign", &scratch, &upstream)];
    match which("unbound") {
        Some(program) => servers.push(unbound(&scratch, &program, &upstream)),
        None => println!("Unbound is not installed"),
    }
    match which("dnsdist") {
        Some(program) => servers.push(dnsdist(&scratch, &program, &upstream)),
        None => println!("dnsdist is not installed"),
    }
    if let Some(program) = std::env::var_os("CALLSIGN_COREDNS") {
        servers.push(coredns(&scratch, Path::new(&program), &upstream));
    }
    let table = callsign("Callsign, from its zone", &scratch, &upstream);
    let hits = |server: &Server, seconds| {
        let own = server.name.ends_with("zone");
        let domain = if own { "hit.svc.cluster.local" } else { "hit.example" };
        measure::ask(server, &questions(&scratch, domain, NAMES, "n"), seconds, None)
    };
    let mut serial = 0;
    let mut misses = |server: &Server, seconds| {
        serial += 1;
        measure::ask(server, &questions(&scratch, "miss.example", FRESH, &format!("r{serial}-")), seconds, None)
    };
    let all: Vec<&Server> = servers.iter().chain([&table]).collect();
    for server in &all {
        hits(server, 1.0);
    }
    let run = |what: &str, servers: &[&Server], ask: &mut dyn FnMut(&Server, f64) -> Figures| {
        let mut figures: Vec<Vec<Figures>> = vec![Vec::new(); servers.len()];
        for _ in 0..rounds {
            for (server, runs) in servers.iter().zip(&mut figures) {
                runs.push(ask(server, seconds));
            }
        }
        println!("\n{what}: medians of {rounds} rounds of {seconds} s\n");
        println!("| | answers per second | CPU µs per answer | times the floor | lost |");
        println!("|---|---|---|---|---|");
        for (server, runs) in servers.iter().zip(&figures) {
            let of = |what: fn(&Figures) -> f64| median(runs.iter().map(what).collect());
            // Each round is compared with the floor of the same round, because disturbances of the machine affect both.
            let times = runs.iter().zip(&figures[0]).map(|(run, floor)| run.microseconds / floor.microseconds);
            println!(
                "| {} | {:.0} | {:.2} | {:.2} | {:.0} |",
                server.name,
                of(|run| run.answers_per_second),
                of(|run| run.microseconds),
                median(times.collect()),
                runs.iter().map(|run| run.lost).sum::<f64>(),
            );
        }
    };
    run("Hits, 5,000 names", &all, &mut |server, seconds| hits(server, seconds));
    let forwarding: Vec<&Server> = servers.iter().collect();
    run("Misses", &forwarding, &mut misses);
    drop(upstream_server);
}
