//! The conformance table: objects, a question, and the complete expected reply.
//!
//! `specification` follows the sections of Kubernetes DNS-Based Service Discovery 1.1.0, `own` holds the rows where the
//! specification is silent. Every case goes through `answer()`, and through the UDP, TCP, TLS, HTTPS, QUIC, HTTP/3 and IPv6
//! sockets of a real server. If CALLSIGN_DIG names dig, dig must read the same reply.

mod own;
mod specification;

use std::net::SocketAddr;

use crate::common::tls::{Authority, Client, Trust};
use crate::common::{self, CLIENT, Scratch, exchange};
use callsign::answer::Limit;
use callsign::app;
use hickory_proto::op::Message;

/// A few objects, and the replies that a server with them must send.
pub struct Group {
    pub title: &'static str,
    pub objects: &'static str,
    pub flags: &'static [&'static str],
    pub cases: &'static [Case],
}

/// The case in prose, `NAME TYPE`, and the reply as `common::text` formats it.
pub type Case = (&'static str, &'static str, &'static str);

fn groups() -> impl Iterator<Item = &'static Group> {
    specification::GROUPS.iter().chain(own::GROUPS)
}

/// Removes the indentation, which only makes the tables readable.
fn trimmed(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

#[test]
fn answer_returns_the_expected_reply_for_every_case() {
    let mut wrong = Vec::new();
    for group in groups() {
        let zone = common::zone(group.objects, group.flags);
        for (case, question, expected) in group.cases {
            let found = common::ask(&zone, CLIENT, question);
            if found != trimmed(expected) {
                wrong.push(format!(
                    "{}: {case}\n  asked    {question}\n  expected {expected}\n  found    {found}",
                    group.title
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Existence decides the rcode, never the type (RFC 8020). Stub resolvers that query A and AAAA at once rely on it.
#[test]
fn every_name_has_one_rcode_for_all_types() {
    for group in groups() {
        let zone = common::zone(group.objects, group.flags);
        for (_, question, _) in group.cases {
            let name = question.split(' ').next().unwrap();
            let rcode = |rtype: &str| {
                let reply = common::ask(&zone, CLIENT, &format!("{name} {rtype}"));
                reply.split([' ', '\n']).next().unwrap().to_owned()
            };
            let of_a = rcode("A");
            let chained = common::ask(&zone, CLIENT, &format!("{name} A")).contains(" CNAME ");
            for rtype in ["AAAA", "SRV", "PTR", "TXT", "MX", "NS", "CNAME", "SOA", "ANY", "HTTPS", "TYPE65280"] {
                // The rcode of a query for the CNAME itself does not depend on its target (RFC 6604 section 2).
                if !(chained && matches!(rtype, "CNAME" | "ANY")) {
                    assert_eq!(rcode(rtype), of_a, "{}: {name} {rtype}", group.title);
                }
            }
        }
    }
}

/// Names are compared case-insensitively (RFC 1035 section 2.3.3), and the question is echoed in the client's case, as
/// resolvers that use 0x20 bits require.
#[test]
fn names_match_in_any_case_and_the_question_is_echoed() {
    for group in groups() {
        let zone = common::zone(group.objects, group.flags);
        for (case, question, _) in group.cases {
            let mut query = common::query(question, Some(1232));
            let plain = common::reply(&zone, CLIENT, &query, Limit::Stream).unwrap();
            let end = 12 + question_length(&query);
            for (index, octet) in query[12..end - 4].iter_mut().enumerate() {
                // Length octets are at most 63, below every letter.
                if index % 2 == 0 && octet.is_ascii_lowercase() {
                    octet.make_ascii_uppercase();
                }
            }
            let mixed = common::reply(&zone, CLIENT, &query, Limit::Stream).unwrap();
            assert_eq!(mixed[12..end], query[12..end], "{}: {case}", group.title);
            assert_eq!(mixed[end..], plain[end..], "{}: {case}", group.title);
        }
    }
}

fn question_length(query: &[u8]) -> usize {
    query[12..].iter().position(|octet| *octet == 0).unwrap() + 1 + 4
}

/// A datagram is never larger than the client allows, with or without EDNS. TC is set only if answers are left out.
#[test]
fn datagrams_stay_within_the_limit_of_the_client() {
    for group in groups() {
        let zone = common::zone(group.objects, group.flags);
        for (case, question, _) in group.cases {
            let whole = Message::from_vec(
                &common::reply(&zone, CLIENT, &common::query(question, None), Limit::Stream).unwrap(),
            )
            .unwrap();
            for (payload, limit) in
                [(None, 512), (Some(0), 512), (Some(900), 900), (Some(1232), 1232), (Some(65_535), 1232)]
            {
                let reply = common::reply(&zone, CLIENT, &common::query(question, payload), Limit::Datagram).unwrap();
                assert!(reply.len() <= limit, "{}: {case}: {} octets exceed {limit}", group.title, reply.len());
                let message = Message::from_vec(&reply).unwrap();
                let cut = message.answers.len() < whole.answers.len();
                assert_eq!(message.metadata.truncation, cut, "{}: {case}", group.title);
                assert_eq!(message.edns.is_some(), payload.is_some(), "{}: {case}: OPT as in the query", group.title);
            }
        }
    }
}

struct Server {
    running: Option<app::Running>,
    trust: Trust,
    _objects: Scratch,
}

impl Server {
    fn start(group: &Group) -> Server {
        let objects = Scratch::folder("served");
        let path = objects.file("objects.yaml", group.objects);
        let authority = Authority::new("An authority");
        authority.issue("A server").write(&objects.0);
        let file = |name: &str| objects.0.join(name).into_os_string().into_string().unwrap();
        let (certificate, key) = (file("tls.crt"), file("tls.key"));
        let listen = [
            "--listen",
            "127.0.0.1:0",
            "--listen",
            "[::1]:0",
            "--admin",
            "127.0.0.1:0",
            "--health",
            "127.0.0.1:0",
            "--workers",
            "2",
        ];
        let encrypted = ["--listen", "tls://127.0.0.1:0,https://127.0.0.1:0,quic://[::1]:0,h3://127.0.0.1:0"];
        let certificates = ["--tls-cert", &certificate, "--tls-key", &key];
        let source = ["--manifests", path.to_str().unwrap()];
        let flags = listen.iter().chain(&encrypted).chain(&certificates).chain(&source);
        let flags: Vec<&str> = flags.chain(group.flags).copied().collect();
        let trust = Trust { authority: authority.pem, identity: None };
        Server { running: Some(app::start(common::config(&flags)).unwrap()), trust, _objects: objects }
    }

    fn addresses(&self) -> &[SocketAddr] {
        &self.running.as_ref().unwrap().addresses
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.running.take().unwrap().stop();
    }
}

/// The records of a reply, in an order that rotation does not change.
fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = trimmed(text).lines().map(Into::into).collect();
    lines[1..].sort();
    lines
}

#[test]
fn udp_and_tcp_return_the_expected_reply_for_every_case() {
    for group in groups() {
        let server = Server::start(group);
        for (index, (case, question, expected)) in group.cases.iter().enumerate() {
            let query = common::query(question, Some(4096));
            for address in server.addresses() {
                let tcp = common::text(&exchange::tcp(*address, &query).unwrap());
                assert_eq!(sorted(&tcp), sorted(expected), "{}: {case}: TCP {address}", group.title);
                // Another test covers answers that a datagram leaves out.
                if index % 3 == 0 || expected.len() < 400 {
                    let udp = common::text(&exchange::udp(*address, &query).unwrap());
                    assert_eq!(sorted(&udp), sorted(expected), "{}: {case}: UDP {address}", group.title);
                }
            }
        }
    }
}

/// Replies equal those over TCP byte for byte. Answers rotate, so TCP is queried once for each record.
#[test]
fn encrypted_transports_return_the_replies_of_tcp_for_every_case() {
    // A worker thread drives the clients while this thread stops a server.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for group in groups() {
        let server = Server::start(group);
        runtime.block_on(async {
            let mut tcp = Client::tcp(server.addresses()[0]).await.unwrap();
            let mut clients = Vec::new();
            for endpoint in &server.running.as_ref().unwrap().encrypted {
                clients.push((*endpoint, Client::connect(*endpoint, &server.trust).await.unwrap()));
            }
            for (case, question, _) in group.cases {
                let mut query = common::query(question, Some(4096));
                // QUIC requires the message ID 0 (RFC 9250 section 4.2.1).
                query[..2].fill(0);
                let first = tcp.ask(&query).await.unwrap();
                let records = Message::from_vec(&first).unwrap().answers.len();
                let mut known = vec![first];
                for _ in 1..records {
                    known.push(tcp.ask(&query).await.unwrap());
                }
                for (endpoint, client) in &mut clients {
                    let reply = client.ask(&query).await.unwrap_or_else(|error| panic!("{case}: {endpoint}: {error}"));
                    assert!(known.contains(&reply), "{}: {case}: {endpoint}", group.title);
                }
            }
        });
    }
}

/// dig, a second independent parser, reads every reply as hickory-proto does.
#[test]
fn dig_reads_the_expected_reply_for_every_case() {
    let Some(dig) = std::env::var_os("CALLSIGN_DIG") else { return };
    for group in groups() {
        let server = Server::start(group);
        let address = server.addresses()[0];
        for (case, question, expected) in group.cases {
            let (name, rtype) = question.split_once(' ').unwrap();
            // dig handles zone transfers differently from other queries.
            if matches!(rtype, "AXFR" | "TYPE251") {
                continue;
            }
            let output = std::process::Command::new(&dig)
                .args([
                    &format!("@{}", address.ip()),
                    "-p",
                    &address.port().to_string(),
                    "+tcp",
                    "+norecurse",
                    "+tries=1",
                ])
                .args([
                    "+noall",
                    "+comments",
                    "+answer",
                    "+authority",
                    "+additional",
                    "+nosplit",
                    "-q",
                    name,
                    "-t",
                    rtype,
                ])
                .output()
                .unwrap();
            let output = String::from_utf8(output.stdout).unwrap();
            assert!(!output.contains("malformed") && !output.contains("extra bytes"), "{case}: {output}");
            let status = output.split("status: ").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or_default();
            let mut section = "";
            let mut lines = Vec::new();
            for line in output.lines() {
                match line {
                    ";; ANSWER SECTION:" => section = "answer",
                    ";; AUTHORITY SECTION:" => section = "authority",
                    ";; ADDITIONAL SECTION:" => section = "additional",
                    line if line.starts_with(';') || line.trim().is_empty() => {}
                    record => {
                        let fields: Vec<&str> = record.split_whitespace().collect();
                        lines.push(match section {
                            "authority" => format!("soa {}", fields[0]),
                            "additional" => format!("glue {}", fields[0]),
                            _ => format!("{} {}", fields[0], fields[3]),
                        });
                    }
                }
            }
            lines.sort();
            let mut known: Vec<String> = trimmed(expected)
                .lines()
                .skip(1)
                .map(|line| {
                    let fields: Vec<&str> = line.split(' ').collect();
                    match fields[0] {
                        "soa" | "glue" => format!("{} {}", fields[0], fields[1]),
                        owner => format!("{owner} {}", fields[2]),
                    }
                })
                .collect();
            known.sort();
            assert_eq!(
                (status, lines),
                (expected.trim().split([' ', '\n']).next().unwrap(), known),
                "{}: {case}\n{output}",
                group.title
            );
        }
    }
}

/// A section or a group without cases would be a gap in the table.
#[test]
fn every_section_has_cases() {
    let titles: Vec<&str> = groups().map(|group| group.title).collect();
    for section in ["2.2", "2.3", "2.4", "2.5"] {
        assert!(titles.iter().any(|title| title.starts_with(section)), "section {section}");
    }
    assert!(groups().all(|group| !group.cases.is_empty()));
}
