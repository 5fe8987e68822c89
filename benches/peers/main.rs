//! Callsign beside its peers: `cargo bench --bench peers [-- ROUNDS [SECONDS]]`.
//!
//! Brings up, with the same names and one worker each, a UDP echo (the floor: what the kernel takes to carry two
//! datagrams), Callsign, NSD, Knot DNS, and CoreDNS where CALLSIGN_COREDNS names its program; pins the server to one
//! core and dnsperf to another, and asks each in turn, round by round. Needs Debian's packages dnsperf, nsd and knot; a
//! server that is not installed is left out and said so.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    unsafe_code,
    missing_docs
)]

#[path = "../../tests/common/mod.rs"]
mod common;
mod echo;
mod names;
#[path = "../../tests/common/api.rs"]
mod scripted;

use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::Scratch;

const SERVER_CORE: &str = "0";
const CLIENT_CORE: &str = "1";

/// A server that runs: the process that was started, and the port that it answers on.
struct Server {
    name: &'static str,
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        // NSD's processes end with their parent when it is asked, not when it is killed.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

/// What one run showed.
#[derive(Clone, Copy, Default)]
struct Figures {
    answers_a_second: f64,
    microseconds: f64,
    mean: f64,
    p99: f64,
    lost: f64,
}

fn free_port() -> u16 {
    loop {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn pinned(program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", SERVER_CORE]).arg(program).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn which(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').map(|folder| Path::new(folder).join(name)).find(|program| program.exists())
}

fn start(name: &'static str, port: u16, command: &mut Command) -> Server {
    let server = Server { name, child: command.spawn().expect("taskset"), port };
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let question = common::query("service-1.ns-1.svc.cluster.local A", None);
    let started = Instant::now();
    let mut reply = [0; 1500];
    loop {
        let _ = socket.send_to(&question, ("127.0.0.1", port));
        let right = name == "echo" || reply[7] == 1 && reply[3] & 15 == 0;
        if socket.recv(&mut reply).is_ok() && right {
            return server;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{name} does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn echo() -> Server {
    let port = free_port();
    let mut command = pinned(&std::env::current_exe().unwrap());
    start("echo", port, command.args(["--echo", &format!("127.0.0.1:{port}")]))
}

fn callsign(scratch: &Scratch) -> Server {
    let port = free_port();
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": names::objects()});
    let file = scratch.file("cluster.json", &list.to_string());
    let mut command = pinned(Path::new(env!("CARGO_BIN_EXE_callsign")));
    command.args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--admin", "127.0.0.1:0", "--workers", "1"]);
    start("Callsign", port, command.arg("--manifests").arg(file))
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
    start("NSD", port, pinned(program).arg("-d").arg("-c").arg(scratch.file("nsd.conf", &text)))
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
    start("Knot DNS", port, pinned(program).arg("-c").arg(scratch.file("knot.conf", &text)))
}

fn coredns(scratch: &Scratch, program: &Path, kubeconfig: &Path) -> Server {
    let port = free_port();
    // As installers write it, but for forwarding.
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
    start("CoreDNS", port, &mut command)
}

/// CPU time in seconds of a process, its threads and its children.
fn cpu_seconds(process: u32) -> f64 {
    let nanoseconds = |path: std::path::PathBuf| -> f64 {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0.0)
    };
    let tasks = format!("/proc/{process}/task");
    let tasks: Vec<_> = std::fs::read_dir(tasks).into_iter().flatten().flatten().map(|task| task.path()).collect();
    let own: f64 = tasks.iter().map(|task| nanoseconds(task.join("schedstat"))).sum();
    let children = tasks.iter().flat_map(|task| {
        let text = std::fs::read_to_string(task.join("children")).unwrap_or_default();
        text.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<u32>>()
    });
    own / 1e9 + children.map(cpu_seconds).sum::<f64>()
}

/// Runs dnsperf for so many seconds; a `rate` makes it ask for so many answers a second and note the latency of each.
fn ask(server: &Server, questions: &Path, seconds: f64, rate: Option<f64>) -> Figures {
    let mut command = Command::new("taskset");
    command.args(["-c", CLIENT_CORE, "dnsperf", "-s", "127.0.0.1", "-p", &server.port.to_string(), "-c", "20"]);
    command.args(["-T", "1", "-t", "2", "-l", &seconds.to_string(), "-d"]).arg(questions);
    if let Some(rate) = rate {
        command.args(["-v", "-Q", &format!("{rate:.0}")]);
    }
    let before = cpu_seconds(server.child.id());
    let output = command.output().expect("dnsperf");
    let cpu = cpu_seconds(server.child.id()) - before;
    let text = String::from_utf8_lossy(&output.stdout);
    let after = |what: &str| -> f64 {
        let rest = text.split(what).nth(1).unwrap_or_else(|| panic!("{what} is missing: {text}"));
        rest.split_whitespace().next().unwrap().parse().unwrap()
    };
    let mut latencies: Vec<f64> = text
        .lines()
        .filter(|line| line.starts_with("> "))
        .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .collect();
    latencies.sort_by(f64::total_cmp);
    let completed = after("Queries completed:");
    Figures {
        answers_a_second: after("Queries per second:"),
        microseconds: cpu / completed * 1e6,
        mean: after("Average Latency (s):") * 1e6,
        p99: latencies.get(latencies.len() * 99 / 100).copied().unwrap_or_default() * 1e6,
        lost: after("Queries lost:"),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
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
        println!("dnsperf is not installed: apt-get install dnsperf nsd knot");
        return;
    }
    let scratch = Scratch::folder("peers");
    let (forward, backward) = names::zone_files();
    scratch.file("forward", &forward);
    scratch.file("backward", &backward);
    std::fs::create_dir_all(scratch.0.join("knot")).unwrap();
    let mut servers = vec![echo(), callsign(&scratch)];
    match which("nsd") {
        Some(program) => servers.push(nsd(&scratch, &program)),
        None => println!("NSD is not installed"),
    }
    match which("knotd") {
        Some(program) => servers.push(knot(&scratch, &program)),
        None => println!("Knot DNS is not installed"),
    }
    // CoreDNS reads the cluster from an API, as it does in one.
    let api = std::env::var_os("CALLSIGN_COREDNS").map(|program| {
        let api = scripted::Api::start(scripted::Streams::Yes);
        for object in names::objects() {
            api.put(object);
        }
        let kubeconfig = scratch.file("kubeconfig", &api.kubeconfig());
        servers.push(coredns(&scratch, Path::new(&program), &kubeconfig));
        api
    });
    for (mix, mixed) in [("all A", false), ("A, AAAA, headless, SRV, PTR, 20 % NXDOMAIN", true)] {
        let questions = scratch.file("questions", &names::questions(mixed));
        let mut full: Vec<Vec<Figures>> = vec![Vec::new(); servers.len()];
        let mut half: Vec<Vec<Figures>> = vec![Vec::new(); servers.len()];
        for server in &servers {
            ask(server, &questions, 0.5, None);
        }
        for _ in 0..rounds {
            for (server, runs) in servers.iter().zip(&mut full) {
                runs.push(ask(server, &questions, seconds, None));
            }
        }
        // Half of what NSD can do, the same for all but those that cannot.
        let best = |runs: &[Figures]| median(runs.iter().map(|run| run.answers_a_second).collect());
        let reference = servers.iter().position(|server| server.name == "NSD").unwrap_or(0);
        let rate = best(&full[reference]) / 2.0;
        for _ in 0..rounds {
            for ((server, runs), full) in servers.iter().zip(&mut half).zip(&full) {
                runs.push(ask(server, &questions, seconds, Some(rate.min(best(full) / 2.0))));
            }
        }
        println!("\n{mix}: medians of {rounds} rounds of {seconds} s; latency at {rate:.0} a second\n");
        println!("| | answers a second | CPU µs an answer | times the floor | mean µs | p99 µs | lost |");
        println!("|---|---|---|---|---|---|---|");
        let of = |runs: &[Figures], what: fn(&Figures) -> f64| median(runs.iter().map(what).collect());
        // Each round against the floor of the same round: what disturbs the machine disturbs both.
        let times = |runs: &[Figures]| {
            median(runs.iter().zip(&full[0]).map(|(run, floor)| run.microseconds / floor.microseconds).collect())
        };
        for ((server, full), half) in servers.iter().zip(&full).zip(&half) {
            println!(
                "| {} | {:.0} | {:.2} | {:.2} | {:.0} | {:.0} | {:.0} |",
                server.name,
                of(full, |run| run.answers_a_second),
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
