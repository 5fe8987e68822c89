//! The cost of encryption: `cargo bench --bench encrypted [-- ROUNDS [SECONDS]]`.
//!
//! One connection of each kind carries ten thousand queries a second, each in its own write, stream or request. The server
//! runs on one core, the client on another; each kind is compared with plain TCP in the same round. Then a thousand
//! connections of each kind send one query each and stay idle.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::large_stack_frames,
    clippy::print_stdout,
    unsafe_code,
    missing_docs
)]

#[path = "../../tests/it/common/mod.rs"]
mod common;
mod measure;

use std::collections::VecDeque;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use callsign::server::encrypted::{ListenUrl, Transport};
use common::Scratch;
use common::exchange::framed;
use common::tls::{self, Authority, Client, NAME, Trust};
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Bytes;
use measure::{Server, cpu_seconds, free_port, median, pinned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

const KNOWN: &str = "api.web.svc.cluster.local A";
const OBJECTS: &str = "kind: Service\nmetadata: {name: api, namespace: web}\nspec: {clusterIP: 10.96.0.10}\n";
/// Queries per millisecond.
const RATE: usize = 10;
const IDLE: usize = 1000;

struct Callsign {
    server: Server,
    endpoints: Vec<ListenUrl>,
    trust: Trust,
    _scratch: Scratch,
}

impl Callsign {
    fn start() -> Callsign {
        let (scratch, authority) = (Scratch::folder("encrypted"), Authority::new("An authority"));
        authority.issue("A server").write(&scratch.0);
        let port = free_port();
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
        command.args(["--upstream", "none", "--tcp-connections", "5000", "--tcp-connections-per-address", "5000"]);
        command.args(["--tcp-idle", "5m", "--manifests"]).arg(scratch.file("objects.yaml", OBJECTS));
        command.arg("--tls-cert").arg(scratch.0.join("tls.crt")).arg("--tls-key").arg(scratch.0.join("tls.key"));
        let kinds = [Transport::Tls, Transport::Https, Transport::Quic, Transport::H3];
        let endpoints = kinds.map(|transport| {
            let address = format!("127.0.0.1:{}", free_port()).parse().unwrap();
            ListenUrl { transport, address }
        });
        for endpoint in &endpoints {
            command.args(["--listen", &endpoint.to_string()]);
        }
        let server = measure::start(KNOWN, "Callsign", port, &mut command);
        let trust = Trust { authority: authority.pem, identity: None };
        Callsign { server, endpoints: endpoints.to_vec(), trust, _scratch: scratch }
    }

    /// Resident memory of the server in MB. The child process is the server: `taskset` replaces itself with it.
    fn resident(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.server.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1000.0
    }
}

/// A query with the ID 0, as QUIC requires.
fn question() -> Vec<u8> {
    let mut query = common::query(KNOWN, Some(1232));
    query[..2].fill(0);
    query
}

/// Sends queries at [`RATE`], each in its own write. Returns the time to each reply in microseconds.
async fn pipelined<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: S, seconds: f64) -> Vec<f64> {
    let (mut input, mut output) = tokio::io::split(stream);
    let sent = Arc::new(Mutex::new(VecDeque::new()));
    let asked = sent.clone();
    let count = (seconds * 1000.0) as usize * RATE;
    let parse_options = tokio::spawn(async move {
        let mut times = Vec::with_capacity(count);
        let mut reply = vec![0; 65_535];
        for _ in 0..count {
            let length = usize::from(input.read_u16().await.unwrap());
            input.read_exact(&mut reply[..length]).await.unwrap();
            let start: Instant = asked.lock().unwrap().pop_front().unwrap();
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        times
    });
    let framed = framed(&question());
    let mut ticks = interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for _ in 0..count / RATE {
        ticks.tick().await;
        for _ in 0..RATE {
            sent.lock().unwrap().push_back(Instant::now());
            output.write_all(&framed).await.unwrap();
            output.flush().await.unwrap();
        }
    }
    parse_options.await.unwrap()
}

/// Like [`pipelined`], with a task for each query.
async fn concurrent<F: Future<Output = ()> + Send + 'static>(mut ask: impl FnMut() -> F, seconds: f64) -> Vec<f64> {
    let (mut asked, mut times) = (JoinSet::new(), Vec::new());
    let mut ticks = interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for _ in 0..(seconds * 1000.0) as usize {
        ticks.tick().await;
        for _ in 0..RATE {
            let (start, asking) = (Instant::now(), ask());
            asked.spawn(async move {
                asking.await;
                start.elapsed().as_secs_f64() * 1e6
            });
        }
        while let Some(time) = asked.try_join_next() {
            times.push(time.unwrap());
        }
    }
    while let Some(time) = asked.join_next().await {
        times.push(time.unwrap());
    }
    times
}

async fn ask(client: Client, seconds: f64) -> Vec<f64> {
    match client {
        Client::Tcp(stream) => pipelined(stream, seconds).await,
        Client::Tls(stream) => pipelined(*stream, seconds).await,
        Client::Http2(client) => {
            let ask = move || {
                let mut client = client.clone();
                async move {
                    client.ready().await.unwrap();
                    let request = Request::post(format!("https://{NAME}/dns-query"));
                    let request = request.header("content-type", "application/dns-message");
                    let request = request.body(Full::new(Bytes::from(question()))).unwrap();
                    let response = client.send_request(request).await.unwrap();
                    assert_eq!(response.status(), 200);
                    response.into_body().collect().await.unwrap();
                }
            };
            concurrent(ask, seconds).await
        }
        Client::Quic(_endpoint, connection) => {
            let ask = move || {
                let connection = connection.clone();
                async move { drop(tls::ask_quic(&connection, &question()).await.unwrap()) }
            };
            concurrent(ask, seconds).await
        }
        Client::H3(endpoint, connection, client) => {
            let ask = move || {
                let mut client = Client::H3(endpoint.clone(), connection.clone(), client.clone());
                async move { drop(client.ask(&question()).await.unwrap()) }
            };
            concurrent(ask, seconds).await
        }
        Client::Http1(_) => Vec::new(),
    }
}

#[derive(Default)]
struct Runs {
    microseconds: Vec<f64>,
    times_tcp: Vec<f64>,
    mean: Vec<f64>,
    p99: Vec<f64>,
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let rounds: usize = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(5);
    let seconds: f64 = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(4.0);
    // The client must not share the server's core.
    let own = std::process::id().to_string();
    let _ = Command::new("taskset").args(["-apc", measure::CLIENT_CORE, &own]).output();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let callsign = Callsign::start();
    let kinds: Vec<Option<ListenUrl>> =
        [None].into_iter().chain(callsign.endpoints.iter().copied().map(Some)).collect();
    let name = |kind: &Option<ListenUrl>| kind.map_or("tcp", |endpoint| endpoint.transport.name());
    let mut all: Vec<Runs> = kinds.iter().map(|_| Runs::default()).collect();
    for _ in 0..rounds {
        for (kind, runs) in kinds.iter().zip(0..) {
            let (mut times, cpu) = runtime.block_on(async {
                let client = match kind {
                    None => Client::tcp(([127, 0, 0, 1], callsign.server.port).into()).await.unwrap(),
                    Some(endpoint) => Client::connect(*endpoint, &callsign.trust).await.unwrap(),
                };
                let before = cpu_seconds(callsign.server.child.id());
                let times = ask(client, seconds).await;
                (times, cpu_seconds(callsign.server.child.id()) - before)
            });
            times.sort_by(f64::total_cmp);
            let microseconds = cpu / times.len() as f64 * 1e6;
            let tcp = if runs == 0 { microseconds } else { *all[0].microseconds.last().unwrap() };
            let runs: &mut Runs = &mut all[runs];
            runs.microseconds.push(microseconds);
            runs.times_tcp.push(microseconds / tcp);
            runs.mean.push(times.iter().sum::<f64>() / times.len() as f64);
            runs.p99.push(times[times.len() * 99 / 100]);
        }
    }
    println!("\nOne connection, {} queries a second: medians of {rounds} rounds of {seconds} s\n", RATE * 1000);
    println!("| | CPU µs per answer | times TCP | mean µs | p99 µs |");
    println!("|---|---|---|---|---|");
    for (kind, runs) in kinds.iter().zip(all) {
        let Runs { microseconds, times_tcp, mean, p99 } = runs;
        let (cpu, times, mean, p99) = (median(microseconds), median(times_tcp), median(mean), median(p99));
        println!("| {} | {cpu:.1} | {times:.2} | {mean:.0} | {p99:.0} |", name(kind));
    }
    drop(callsign);
    println!("\n{IDLE} idle connections, a separate server for each kind\n");
    println!("| | MB before | MB with connections | kB per connection | CPU ms per handshake |");
    println!("|---|---|---|---|---|");
    for index in 0..kinds.len() {
        let callsign = Callsign::start();
        let endpoint = index.checked_sub(1).map(|index| callsign.endpoints[index]);
        let (before, cpu) = (callsign.resident(), cpu_seconds(callsign.server.child.id()));
        let _held = runtime.block_on(async {
            let mut held = Vec::new();
            for _ in 0..IDLE {
                let mut client = match endpoint {
                    None => Client::tcp(([127, 0, 0, 1], callsign.server.port).into()).await.unwrap(),
                    Some(endpoint) => Client::connect(endpoint, &callsign.trust).await.unwrap(),
                };
                client.ask(&question()).await.unwrap();
                held.push(client);
            }
            held
        });
        let (after, cpu) = (callsign.resident(), cpu_seconds(callsign.server.child.id()) - cpu);
        let each = (after - before) * 1000.0 / IDLE as f64;
        println!("| {} | {before:.1} | {after:.1} | {each:.1} | {:.2} |", name(&endpoint), cpu * 1000.0 / IDLE as f64);
    }
}
