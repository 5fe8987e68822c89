//! Callsign under five attacks at once: `cargo bench --bench siege [-- MINUTES [SECONDS OF QUIET]]`; ten minutes unless
//! told otherwise.
//!
//! An honest client asks for names of the cluster and for cached names, over UDP and TCP: first in quiet, then while
//! attackers flood the server with queries, pull large answers without reading them, ask for random names of a dead
//! zone, write hostile objects, and forge replies of the upstream. The attackers share one core. What they do follows a
//! fixed seed. The server is the one in `CALLSIGN_BINARY`, else the one built with this benchmark.
//!
//! Fails if the honest client loses more than one answer in a hundred, if a probe fails, or if the server holds too much
//! memory or logs too much: these are counts. The goal is to lose none; but where other work shares the cores, a worker
//! may not run for longer than its queue lasts. Times are only reported.
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

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::scripted::{Api, WatchListSupport};
use common::upstream::{self, Upstream};
use common::{Scratch, exchange};
use hickory_proto::op::ResponseCode;
use serde_json::{Value, json};

/// Services of the cluster that the honest client asks for.
const SERVICES: usize = 2000;
/// Interval between the honest client's queries over one transport.
const PACE: Duration = Duration::from_millis(2);
/// Time after which a query counts as lost.
const LOST: Duration = Duration::from_secs(2);
/// Most memory that the server may hold, in KB.
const MAX_MEMORY: u64 = 128 * 1024;
/// Most lines that it may log in a minute.
const MAX_LINES: u64 = 100;

/// Pseudo-random numbers with a fixed seed (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.as_slice() {
        [attack, server] if attack == "attack" => attack_with(server.parse().unwrap()),
        [] => siege(10.0, 20.0),
        [minutes] => siege(minutes.parse().unwrap(), 10.0),
        [minutes, quiet, ..] => siege(minutes.parse().unwrap(), quiet.parse().unwrap()),
    }
}

/// A process that ends with this value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn siege(minutes: f64, quiet: f64) {
    let api = Arc::new(cluster());
    let upstream = Upstream::start(|query, _| {
        let name = query.queries[0].name().to_lowercase().to_string();
        if name.ends_with("dead.example.") {
            return Vec::new();
        }
        let record = format!("{} 3600 A 192.0.2.1", query.queries[0].name());
        let right = upstream::reply(query, ResponseCode::NoError, &upstream::parse(&record));
        let mut all = vec![right.to_vec().unwrap()];
        if name.starts_with("forged") {
            // Forged replies with other message IDs arrive first.
            let forged = upstream::parse(&format!("{} 3600 A 203.0.113.66", query.queries[0].name()));
            let forged = upstream::reply(query, ResponseCode::NoError, &forged).to_vec().unwrap();
            for guess in 1..=3 {
                let mut other = forged.clone();
                other[1] = other[1].wrapping_add(guess);
                all.insert(0, other);
            }
        }
        all
    });
    let scratch = Scratch::folder("siege");
    let kubeconfig = scratch.file("config", &api.kubeconfig());
    let program = std::env::var("CALLSIGN_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_callsign").to_owned());
    let mut command = Command::new(program);
    command.args(["serve", "--kubeconfig", kubeconfig.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    command.args(["--admin", "127.0.0.1:0", "--health", "127.0.0.1:0", &upstream.flag()]);
    let mut server = Process(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the server"));
    let mut line = String::new();
    BufReader::new(server.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let after = |word: &str| -> SocketAddr {
        line.split(word).nth(1).unwrap().trim().split([' ', ',']).next().unwrap().parse().unwrap()
    };
    let (dns, health) = (after("listens on"), after("health on"));
    let (lines, log) = (Arc::new(AtomicU64::new(0)), BufReader::new(server.0.stderr.take().unwrap()));
    let counted = lines.clone();
    std::thread::spawn(move || {
        log.lines().map_while(Result::ok).for_each(|_| _ = counted.fetch_add(1, Ordering::Relaxed))
    });
    let known = common::query(&format!("s{}.web.svc.cluster.local. A", SERVICES - 1), None);
    let started = Instant::now();
    while !exchange::udp(dns, &known).is_ok_and(|reply| reply[3] & 15 == 0 && reply[7] == 1) {
        assert!(started.elapsed() < Duration::from_secs(30), "the server does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
    for index in 0..50 {
        exchange::udp(dns, &common::query(&format!("www{index}.example. A"), None)).unwrap();
    }

    let in_quiet = observe(dns, health, Duration::from_secs_f64(quiet));
    lines.store(0, Ordering::Relaxed);
    let stop = Arc::new(AtomicBool::new(false));
    let tenant = churn(api, stop.clone());
    let attackers = Command::new("taskset")
        .args(["-c", "1"])
        .arg(std::env::current_exe().unwrap())
        .args(["attack", &dns.to_string()])
        .spawn();
    let mut attackers = Process(attackers.expect("taskset"));
    let under_attack = observe(dns, health, Duration::from_secs_f64(60.0 * minutes));
    let ended = attackers.0.try_wait().unwrap();
    drop(attackers);
    stop.store(true, Ordering::Relaxed);
    tenant.join().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.0.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.split_whitespace().next().unwrap().parse().unwrap();
    let lines_a_minute = lines.load(Ordering::Relaxed) as f64 / minutes;

    println!("| honest client | asked | lost | median | p99 | p99 against quiet |");
    println!("|---|---|---|---|---|---|");
    let (mut lost, mut asked) = (0, 0);
    for (name, before, during) in [
        ("UDP, table and cache", &in_quiet.udp, &under_attack.udp),
        ("TCP, table and cache", &in_quiet.tcp, &under_attack.tcp),
    ] {
        for (when, times, ratio) in [
            ("in quiet", before, 1.0),
            ("under attack", during, during.at(0.99).as_secs_f64() / before.at(0.99).as_secs_f64()),
        ] {
            println!(
                "| {name}, {when} | {} | {} | {:.2} ms | {:.2} ms | {ratio:.1} |",
                times.all.len() as u64 + times.lost,
                times.lost,
                1e3 * times.at(0.5).as_secs_f64(),
                1e3 * times.at(0.99).as_secs_f64(),
            );
        }
        lost += during.lost;
        asked += during.all.len() as u64 + during.lost;
    }
    println!("\npeak memory {:.1} MiB, log {lines_a_minute:.0} lines a minute", peak as f64 / 1024.0);
    println!(
        "/health: p99 {:.1} ms, {} failed",
        1e3 * under_attack.health.at(0.99).as_secs_f64(),
        under_attack.health.lost
    );
    assert!(ended.is_none(), "the attackers gave up");
    assert!(100 * lost <= asked, "the honest client lost {lost} of {asked} answers");
    assert_eq!(under_attack.health.lost, 0, "a probe failed");
    assert!(peak < MAX_MEMORY, "the server held {peak} KB");
    assert!(lines_a_minute < MAX_LINES as f64, "the server logged {lines_a_minute} lines a minute");
}

/// A cluster with many small Services and one large one.
fn cluster() -> Api {
    let api = Api::start(WatchListSupport::Yes);
    for name in ["web", "greedy"] {
        api.put(json!({"kind": "Namespace", "metadata": {"name": name}}));
    }
    for index in 0..SERVICES {
        api.put(service(&format!("s{index}"), "web", index));
    }
    api.put(json!({"kind": "Service", "metadata": {"name": "big", "namespace": "web"}, "spec": {"clusterIP": "None"}}));
    for slice in 0..16 {
        let endpoints: Vec<Value> =
            (0..250).map(|index| json!({"addresses": [format!("10.1.{slice}.{index}")]})).collect();
        api.put(json!({
            "kind": "EndpointSlice",
            "metadata": {"name": format!("big-{slice}"), "namespace": "web", "labels": {"kubernetes.io/service-name": "big"}},
            "addressType": "IPv4", "endpoints": endpoints,
        }));
    }
    api
}

fn service(name: &str, namespace: &str, index: usize) -> Value {
    let address = format!("10.96.{}.{}", index / 250, index % 250 + 1);
    json!({"kind": "Service", "metadata": {"name": name, "namespace": namespace}, "spec": {"clusterIP": address}})
}

/// Starts the tenants: one whose Services come and go, and one who writes hostile objects.
fn churn(api: Arc<Api>, stop: Arc<AtomicBool>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut random = Random(0x5eed_0001);
        let junk = |random: &mut Random| {
            (0..random.next(3000)).map(|_| char::from(33 + random.next(90) as u8)).collect::<String>()
        };
        // They are made once: the cost of making them is not the server's.
        let list = (0..5000).map(|_| format!("n{}", random.next(1_000_000))).collect::<Vec<_>>().join(",");
        while !stop.load(Ordering::Relaxed) {
            let index = random.next(100);
            if random.next(2) == 0 {
                api.put(service(&format!("churn-{index}"), "web", 3000 + index as usize));
            } else {
                api.delete("services", "web", &format!("churn-{index}"));
            }
            let annotations = match random.next(3) {
                0 => json!({"callsign.dev/visible-to": list}),
                1 => json!({"callsign.dev/alias": junk(&mut random), "callsign.dev/default": junk(&mut random)}),
                _ => json!({"callsign.dev/links": list}),
            };
            api.put(json!({
                "kind": "Service",
                "metadata": {"name": format!("h{}", random.next(2000)), "namespace": "greedy", "annotations": annotations},
                "spec": {"clusterIP": "10.97.0.1", "ports": [{"port": random.next(70_000), "name": junk(&mut random)}]},
            }));
            std::thread::sleep(Duration::from_millis(100));
        }
    })
}

/// Response times, and what never came.
#[derive(Default)]
struct Times {
    all: Vec<Duration>,
    lost: u64,
}

impl Times {
    fn at(&self, quantile: f64) -> Duration {
        let mut sorted = self.all.clone();
        sorted.sort_unstable();
        sorted.get((quantile * sorted.len() as f64) as usize).copied().unwrap_or(LOST)
    }

    /// Measures one exchange.
    fn take(&mut self, exchange: impl FnOnce() -> bool) {
        let start = Instant::now();
        if exchange() { self.all.push(start.elapsed()) } else { self.lost += 1 }
    }
}

struct Observed {
    udp: Times,
    tcp: Times,
    health: Times,
}

/// The questions of the honest client, with the last octets of the right reply.
fn questions() -> Vec<(Vec<u8>, [u8; 4])> {
    let mut random = Random(0x5eed_0002);
    let own = |index: u64| {
        let query = common::query(&format!("s{index}.web.svc.cluster.local. A"), None);
        (query, [10, 96, (index / 250) as u8, (index % 250 + 1) as u8])
    };
    let cached = |index: u64| (common::query(&format!("www{index}.example. A"), None), [192, 0, 2, 1]);
    (0..1000)
        .map(|index| if index % 4 == 0 { cached(random.next(50)) } else { own(random.next(SERVICES as u64)) })
        .collect()
}

/// Plays the honest client and the kubelet for a time.
fn observe(dns: SocketAddr, health: SocketAddr, time: Duration) -> Observed {
    let end = Instant::now() + time;
    let udp = std::thread::spawn(move || {
        let socket = exchange::udp_socket_from([127, 0, 0, 9].into(), dns);
        socket.set_read_timeout(Some(LOST)).unwrap();
        let (mut times, mut reply) = (Times::default(), [0; 1500]);
        for (id, (mut query, address)) in (0_u16..).map(|id| id.wrapping_mul(7919)).zip(questions().into_iter().cycle())
        {
            if Instant::now() >= end {
                break;
            }
            query[..2].copy_from_slice(&id.to_be_bytes());
            times.take(|| {
                socket.send(&query).unwrap();
                // The reply to an earlier query that counted as lost is skipped.
                while let Ok(length) = socket.recv(&mut reply) {
                    if reply[..2] == query[..2] {
                        return reply[..length].ends_with(&address);
                    }
                }
                false
            });
            std::thread::sleep(PACE);
        }
        times
    });
    let tcp = std::thread::spawn(move || {
        let mut times = Times::default();
        for (query, address) in questions().into_iter().cycle() {
            if Instant::now() >= end {
                break;
            }
            times.take(|| {
                let ask = || -> std::io::Result<Vec<u8>> {
                    let mut stream = TcpStream::connect_timeout(&dns, LOST)?;
                    stream.set_read_timeout(Some(LOST))?;
                    stream.write_all(&exchange::framed(&query))?;
                    exchange::read_framed(&mut stream)
                };
                ask().is_ok_and(|reply| reply.ends_with(&address))
            });
            std::thread::sleep(5 * PACE);
        }
        times
    });
    let mut probes = Times::default();
    while Instant::now() < end {
        probes.take(|| {
            let ask = || -> std::io::Result<String> {
                let mut stream = TcpStream::connect_timeout(&health, LOST)?;
                stream.set_read_timeout(Some(LOST))?;
                write!(stream, "GET /health HTTP/1.1\r\nHost: {health}\r\nConnection: close\r\n\r\n")?;
                let mut text = String::new();
                stream.read_to_string(&mut text)?;
                Ok(text)
            };
            ask().is_ok_and(|text| text.starts_with("HTTP/1.1 200"))
        });
        std::thread::sleep(Duration::from_millis(100));
    }
    Observed { udp: udp.join().unwrap(), tcp: tcp.join().unwrap(), health: probes }
}

/// Attacks a server until the process is killed.
fn attack_with(server: SocketAddr) {
    let attackers = [
        std::thread::spawn(move || flood(server)),
        std::thread::spawn(move || pull(server)),
        std::thread::spawn(move || ask_for_random_names(server)),
    ];
    for attacker in attackers {
        attacker.join().unwrap();
    }
}

/// Sends queries from twenty addresses, as fast as possible, and reads no reply.
fn flood(server: SocketAddr) {
    let mut random = Random(0x5eed_0003);
    let sockets: Vec<UdpSocket> =
        (0..200).map(|index| exchange::udp_socket_from([127, 0, 1, index as u8 % 20 + 1].into(), server)).collect();
    let queries: Vec<Vec<u8>> = (0..500)
        .map(|index| match index % 5 {
            0 => (0..random.next(100)).map(|_| random.next(256) as u8).collect(),
            1 => common::query(&format!("x{}.web.svc.cluster.local. A", random.next(1 << 40)), Some(4096)),
            2 => common::query("big.web.svc.cluster.local. SRV", Some(4096)),
            _ => common::query(&format!("s{}.web.svc.cluster.local. A", random.next(3000)), None),
        })
        .collect();
    loop {
        for _ in 0..1000 {
            let (socket, query) = (&sockets[random.next(200) as usize], &queries[random.next(500) as usize]);
            let _ = socket.send(query);
        }
    }
}

/// Asks for large answers over many connections, and reads few of them.
fn pull(server: SocketAddr) {
    let mut random = Random(0x5eed_0004);
    let query = exchange::framed(&common::query("big.web.svc.cluster.local. A", None)).repeat(20);
    let mut held: HashMap<u64, TcpStream> = HashMap::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let place = random.next(600);
        match held.get_mut(&place) {
            Some(stream) if random.next(4) > 0 => {
                let _ = stream.read(&mut buffer);
            }
            Some(_) => _ = held.remove(&place),
            None => {
                let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                let _ = socket.bind(&SocketAddr::from(([127, 0, 2, 1 + (place % 8) as u8], 0)).into());
                if socket.connect(&server.into()).is_ok() {
                    let mut stream = TcpStream::from(socket);
                    let _ = stream.set_nonblocking(true);
                    let _ = stream.write(&query);
                    held.insert(place, stream);
                }
            }
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Asks for names of a zone that is dead, and for some whose replies are forged.
fn ask_for_random_names(server: SocketAddr) {
    let mut random = Random(0x5eed_0005);
    let socket = exchange::udp_socket_from([127, 0, 3, 1].into(), server);
    loop {
        let zone = if random.next(4) == 0 { "example" } else { "dead.example" };
        let name = format!("forged{}.{zone}. A", random.next(1 << 40));
        let _ = socket.send(&common::query(&name, Some(1232)));
        std::thread::sleep(Duration::from_millis(1));
    }
}
