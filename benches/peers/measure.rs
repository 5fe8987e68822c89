//! Runs a server on one core and dnsperf on another, and measures the cost of the server's answers.
#![allow(dead_code)]

use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::common;

const SERVER_CORE: &str = "0";
pub const CLIENT_CORE: &str = "1";

/// A running server: its process, and the port on which it answers.
pub struct Server {
    pub name: &'static str,
    pub child: Child,
    pub port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        // NSD's child processes end with their parent on SIGTERM, but not on SIGKILL.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

/// The results of one run.
#[derive(Clone, Copy, Default)]
pub struct Figures {
    pub answers_per_second: f64,
    pub microseconds: f64,
    pub mean: f64,
    pub p99: f64,
    pub lost: f64,
}

pub fn free_port() -> u16 {
    loop {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub fn pinned(program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", SERVER_CORE]).arg(program).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

pub fn which(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').map(|folder| Path::new(folder).join(name)).find(|program| program.exists())
}

/// Starts a server, and waits until it answers the question `known`.
pub fn start(known: &str, name: &'static str, port: u16, command: &mut Command) -> Server {
    let server = Server { name, child: command.spawn().expect("taskset"), port };
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let question = common::query(known, None);
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

/// Starts the UDP echo, which is the floor.
pub fn echo(known: &str) -> Server {
    let port = free_port();
    let mut command = pinned(&std::env::current_exe().unwrap());
    start(known, "echo", port, command.args(["--echo", &format!("127.0.0.1:{port}")]))
}

/// CPU time in seconds of a process, its threads and its children.
pub fn cpu_seconds(process: u32) -> f64 {
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

/// Runs dnsperf for `seconds`. A `rate` limits the queries per second, and makes dnsperf record the latency of each.
pub fn ask(server: &Server, questions: &Path, seconds: f64, rate: Option<f64>) -> Figures {
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
        let rest = text.split(what).nth(1).unwrap_or_else(|| panic!("no '{what}' in {text}"));
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
        answers_per_second: after("Queries per second:"),
        microseconds: cpu / completed * 1e6,
        mean: after("Average Latency (s):") * 1e6,
        p99: latencies.get(latencies.len() * 99 / 100).copied().unwrap_or_default() * 1e6,
        lost: after("Queries lost:"),
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
