//! Misbehaving clients: slow, incomplete, overlong and too many. Memory and threads stay bounded, and other clients are
//! answered throughout (RFC 7766).

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::common::process::Server;
use hickory_proto::op::Message;
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};

use crate::common::upstream::until;
use crate::common::{Scratch, exchange, query};

const API: &str = "kind: Service\nmetadata: {name: api, namespace: web}\nspec: {clusterIP: 10.96.0.10}\n";
const QUESTION: &str = "api.web.svc.cluster.local A";

fn start(flags: &[&str]) -> (Server, Scratch) {
    let scratch = Scratch::folder("transport");
    let path = scratch.file("api.yaml", API);
    let flags: Vec<&str> = ["--manifests", path.to_str().unwrap()].iter().chain(flags).copied().collect();
    (Server::start(&flags, None), scratch)
}

fn ask_tcp(server: SocketAddr) -> std::io::Result<Vec<u8>> {
    exchange::tcp(server, &query(QUESTION, None))
}

fn is_closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 64]) {
        Ok(octets) => octets == 0,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

#[test]
fn pipelined_queries_are_answered_in_order() {
    let (server, _scratch) = start(&[]);
    let mut stream = exchange::tcp_stream(server.dns);
    let mut all = Vec::new();
    for id in 0..500u16 {
        let mut query = query(QUESTION, None);
        query[..2].copy_from_slice(&id.to_be_bytes());
        all.extend(exchange::framed(&query));
    }
    // In chunks that do not end at message boundaries.
    for piece in all.chunks(997) {
        stream.write_all(piece).unwrap();
    }
    for id in 0..500u16 {
        assert_eq!(exchange::read_framed(&mut stream).unwrap()[..2], id.to_be_bytes());
    }
}

#[test]
fn frames_that_are_not_queries_do_not_break_the_connection() {
    let (server, _scratch) = start(&["--tcp-idle", "1s"]);
    let good = exchange::framed(&query(QUESTION, None));
    // Each frame starts with a readable header, so it gets an error reply, and the next query is answered.
    for (case, frame, rcode) in [
        (
            "65,535 octets that start like a query",
            exchange::framed(&[&query(QUESTION, None)[..], &vec![7; 65_535 - 43]].concat()),
            1,
        ),
        ("65,535 zeros", exchange::framed(&vec![0; 65_535]), 1),
        ("garbage", exchange::framed(b"garbage and more of it"), 4),
    ] {
        let mut stream = exchange::tcp_stream(server.dns);
        stream.write_all(&frame).unwrap();
        assert_eq!(exchange::read_framed(&mut stream).unwrap()[3] & 15, rcode, "{case}");
        stream.write_all(&good).unwrap();
        assert_eq!(exchange::read_framed(&mut stream).unwrap()[3] & 15, 0, "{case}: the query after it");
    }
    // These frames get no reply, but the query after them does.
    for (case, frame) in [
        ("an empty frame", exchange::framed(&[])),
        ("half a header", exchange::framed(&[1, 2, 3])),
        ("a reply", exchange::framed(&[0, 1, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
    ] {
        let mut stream = exchange::tcp_stream(server.dns);
        stream.write_all(&frame).unwrap();
        stream.write_all(&good).unwrap();
        assert_eq!(exchange::read_framed(&mut stream).unwrap()[..2], good[2..4], "{case}");
    }
    // The idle timeout applies until a message is complete.
    for (case, octets) in [
        ("silence", &[][..]),
        ("half a length", &[0]),
        ("a length, then silence", &[0, 43]),
        ("half a message", &good[..20]),
    ] {
        let mut stream = exchange::tcp_stream(server.dns);
        stream.write_all(octets).unwrap();
        let start = Instant::now();
        assert!(is_closed(&mut stream), "{case}");
        assert!((900..4000).contains(&start.elapsed().as_millis()), "{case}: {:?}", start.elapsed());
    }
}

#[test]
fn new_connections_at_the_limit_are_answered() {
    let (server, _scratch) = start(&["--tcp-connections-per-address", "8"]);
    // Every connection slot belongs to a client that has sent a query and is now idle.
    let held: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = exchange::tcp_stream(server.dns);
            stream.write_all(&exchange::framed(&query(QUESTION, None))).unwrap();
            exchange::read_framed(&mut stream).unwrap();
            stream
        })
        .collect();
    for _ in 0..20 {
        // Several at once: one new connection does not evict another.
        let mut burst: Vec<_> = (0..4).map(|_| exchange::tcp_stream(server.dns)).collect();
        for stream in &mut burst {
            stream.write_all(&exchange::framed(&query(QUESTION, None))).unwrap();
        }
        for stream in &mut burst {
            exchange::read_framed(stream).unwrap();
        }
    }
    drop(held);
}

#[test]
fn replies_and_noise_over_udp_get_no_reply() {
    let (server, _scratch) = start(&[]);
    let socket = exchange::udp_socket(server.dns);
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut reply = query(QUESTION, None);
    reply[2] |= 0x80;
    for (case, message) in [("a reply", &reply[..]), ("an empty datagram", &[]), ("half a header", &[1, 2, 3])] {
        socket.send(message).unwrap();
        assert!(socket.recv(&mut [0; 512]).is_err(), "{case}");
    }
    // A datagram longer than any query gets a bare header in reply.
    let mut long = query(QUESTION, None);
    long.resize(9000, 0);
    socket.send(&long).unwrap();
    let mut found = [0; 512];
    assert_eq!(socket.recv(&mut found).unwrap(), 12);
    assert_eq!(found[3] & 15, 1);
}

#[test]
fn a_client_at_its_limit_loses_its_unused_connection() {
    let (server, _scratch) = start(&["--tcp-connections-per-address", "10"]);
    let mut held: Vec<TcpStream> = (0..10).map(|_| exchange::tcp_stream(server.dns)).collect();
    // Several threads accept connections, in no particular order.
    until("all are accepted", || server.get("/metrics").contains("callsign_tcp_connections 10.0\n"));
    // All but the first have carried a query.
    for stream in &mut held[1..] {
        stream.write_all(&exchange::framed(&query(QUESTION, None))).unwrap();
        exchange::read_framed(stream).unwrap();
    }
    assert!(ask_tcp(server.dns).is_ok(), "the eleventh connection is answered");
    assert!(is_closed(&mut held[0]), "the unused connection was evicted");
    for stream in &mut held[2..] {
        stream.write_all(&exchange::framed(&query(QUESTION, None))).unwrap();
        assert!(exchange::read_framed(stream).is_ok(), "the other connections stay open");
    }
}

/// A thousand connections, each from its own loopback address, that send one octet a second.
#[test]
fn slow_clients_do_not_affect_others() {
    let seconds = std::env::var("CALLSIGN_ATTACK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let (server, _scratch) = start(&[]);
    // Measure a settled server: the last of its threads start while it answers the first query.
    server.ask(QUESTION);
    std::thread::sleep(Duration::from_millis(500));
    let (threads, memory) = (server.status("Threads:"), server.status("VmRSS:"));
    let attackers: Vec<std::thread::JoinHandle<usize>> = (0..4u8)
        .map(|part| {
            let to = server.dns;
            std::thread::spawn(move || {
                let mut frame = exchange::framed(&query(QUESTION, None));
                frame.resize(400, 0);
                let mut streams: Vec<Option<TcpStream>> = Vec::new();
                let mut broken = 0;
                let end = Instant::now() + Duration::from_secs(seconds);
                let mut at = 0;
                while Instant::now() < end {
                    let start = Instant::now();
                    for index in 0..250u16 {
                        if streams.len() <= usize::from(index) {
                            streams.push(None);
                        }
                        let slot = &mut streams[usize::from(index)];
                        let sent =
                            slot.as_mut().is_some_and(|stream| stream.write_all(&frame[at % 400..=at % 400]).is_ok());
                        if !sent {
                            broken += 1;
                            // Each connection has its own loopback address, to avoid the limit per address.
                            let from = SocketAddr::from(([127, 0, part + 1, index as u8], 0));
                            let socket =
                                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                            *slot = (socket.bind(&from.into()).is_ok() && socket.connect(&to.into()).is_ok())
                                .then(|| socket.into());
                        }
                    }
                    at += 1;
                    std::thread::sleep(Duration::from_secs(1).saturating_sub(start.elapsed()));
                }
                broken
            })
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut udp, mut tcp) = (0, 0);
    while Instant::now() < end {
        assert!(server.ask(QUESTION).contains("10.96.0.10"), "UDP is answered");
        udp += 1;
        assert_eq!(ask_tcp(server.dns).expect("TCP is answered")[3] & 15, 0);
        tcp += 1;
    }
    assert_eq!(server.status("Threads:"), threads, "the number of threads stays the same");
    let grown = server.status("VmRSS:").saturating_sub(memory);
    assert!(grown < 20_000, "a thousand connections took {grown} kB");
    let broken: usize = attackers.into_iter().map(|attacker| attacker.join().unwrap()).sum();
    println!("{seconds} s: {udp} UDP and {tcp} TCP queries answered, {grown} kB taken, {broken} connections opened");
    assert!(udp > 100 && tcp > 100);
}

#[test]
fn keepalive_is_answered_over_tcp_alone() {
    let (server, _scratch) = start(&["--tcp-idle", "7s"]);
    let mut query = Message::from_vec(&query(QUESTION, Some(1232))).unwrap();
    query.edns.as_mut().unwrap().options_mut().insert(EdnsOption::Unknown(11, vec![]));
    let query = query.to_vec().unwrap();
    let option = |reply: Vec<u8>| match Message::from_vec(&reply).unwrap().edns.unwrap().option(EdnsCode::from(11u16)) {
        Some(EdnsOption::Unknown(_, data)) => Some(data.clone()),
        _ => None,
    };
    assert_eq!(option(exchange::tcp(server.dns, &query).unwrap()), Some(vec![0, 70]), "in units of 100 ms (RFC 7828)");
    assert_eq!(option(exchange::udp(server.dns, &query).unwrap()), None);
}
