//! The program as a child process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::exchange;

pub fn callsign() -> Command {
    with(std::path::Path::new(env!("CARGO_BIN_EXE_callsign")))
}

/// Returns a command for this program, without the environment variables that Callsign reads.
pub fn with(program: &std::path::Path) -> Command {
    let mut command = Command::new(program);
    for inherited in ["KUBERNETES_SERVICE_HOST", "CALLSIGN_NAMESPACE", "KUBECONFIG"] {
        command.env_remove(inherited);
    }
    let inherited = std::env::vars_os().map(|(name, _)| name);
    for name in inherited.filter(|name| name.to_string_lossy().starts_with("CALLSIGN_")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

pub fn run(arguments: &[&str]) -> Output {
    callsign().args(arguments).output().unwrap()
}

/// A server in a child process.
pub struct Server {
    pub child: Child,
    pub dns: SocketAddr,
    pub admin: SocketAddr,
    pub health: SocketAddr,
    /// The line that it printed when it started.
    pub line: String,
}

impl Server {
    pub fn start(arguments: &[&str], input: Option<&str>) -> Server {
        Server::start_with(callsign(), arguments, input)
    }

    /// Starts a server with this command.
    pub fn start_with(mut command: Command, arguments: &[&str], input: Option<&str>) -> Server {
        command.arg("serve");
        let plain = arguments.windows(2).any(|pair| pair[0] == "--listen" && !pair[1].contains("://"));
        if !plain {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        for flag in ["--admin", "--health"].into_iter().filter(|flag| !arguments.contains(flag)) {
            command.args([flag, "127.0.0.1:0"]);
        }
        command.args(arguments);
        command.args(super::default_upstream_flags(arguments));
        let input_is = if input.is_some() { Stdio::piped() } else { Stdio::null() };
        let mut child = command.stdin(input_is).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        if let Some(text) = input {
            child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        }
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let after = |word: &str| {
            let rest = line.split(word).nth(1).unwrap_or_else(|| panic!("{line}"));
            rest.trim().split([' ', ',']).next().unwrap().parse().unwrap()
        };
        Server { dns: after("listens on"), admin: after("admin on"), health: after("health on"), child, line }
    }

    pub fn ask(&self, question: &str) -> String {
        ask(self.dns, question).expect("a reply")
    }

    pub fn wait_for_answer(&self, question: &str, expected: &str, time: Duration) {
        let start = Instant::now();
        while !self.ask(question).contains(expected) {
            assert!(start.elapsed() < time, "{question}: {}", self.ask(question));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn get(&self, path: &str) -> String {
        exchange::http_get(self.admin, path)
    }

    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Returns a number from `/proc/PID/status`.
    pub fn status(&self, key: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Waits for the process to exit; returns its status and its log.
    pub fn wait(mut self) -> (Option<i32>, String) {
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code(), log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn ask(server: SocketAddr, question: &str) -> Option<String> {
    let socket = exchange::udp_socket(server);
    socket.set_read_timeout(Some(Duration::from_millis(1000))).unwrap();
    let reply = exchange::exchange(&socket, &super::query(question, Some(1232))).ok()?;
    Some(super::text(&reply))
}
