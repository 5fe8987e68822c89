//! Code that the tests share: zones from manifests and flags, and replies as text, read by an independent parser.

#![allow(
    dead_code,
    clippy::large_stack_frames,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    missing_docs
)]

pub mod exchange;
pub mod follower;
pub mod process;
pub mod real;
pub mod scripted;
pub mod tls;
pub mod upstream;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use callsign::answer::{Limit, Verdict, answer};
use callsign::cluster::{Event, publish};
use callsign::config::{Config, ServeArgs};
use callsign::zone::{Builder, Caller, Zone};
use clap::Parser;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// The caller in tests where the caller does not matter.
pub const CLIENT: Caller<'static> = Caller::Address(IpAddr::V4(Ipv4Addr::LOCALHOST));

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    serve: ServeArgs,
}

/// Returns flags that prevent a server without `--upstream` from using the host's upstreams.
pub fn default_upstream_flags(flags: &[&str]) -> &'static [&'static str] {
    if flags.iter().any(|flag| flag.starts_with("--upstream")) { &[] } else { &["--upstream=none"] }
}

/// Returns the configuration for these flags of `callsign serve`.
pub fn config(flags: &[&str]) -> Config {
    let flags = ["callsign"].iter().chain(default_upstream_flags(flags)).chain(flags);
    Flags::try_parse_from(flags).unwrap_or_else(|error| panic!("{error}")).serve.config().unwrap()
}

/// A temporary folder that is removed at the end of the test.
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// Creates a folder with a unique name.
    pub fn folder(name: &str) -> Scratch {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("callsign-{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(unique);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    /// Writes a file in the folder; returns its path.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Builds the zone for these objects as the server does; returns it with the rejected objects and the diagnostics.
pub fn zone_and_diagnostics(objects: &str, flags: &[&str]) -> (Arc<Zone>, Vec<String>) {
    let config = config(flags);
    let scratch = Scratch::folder("objects");
    let path = scratch.file("objects.yaml", objects);
    let (_, events) = config.source.open_manifests(&path).unwrap_or_else(|error| panic!("{error}"));
    let mut settings = config.settings.clone();
    settings.advertise(&config.advertise);
    let (zone, mut builder, others) = publish::build(Builder::new(Arc::new(settings)), events);
    let rejected = others.iter().filter_map(|event| match event {
        Event::Rejected(rejected) => Some(rejected.to_string()),
        _ => None,
    });
    let diagnostics = rejected.chain(builder.take_diagnostics().iter().map(|report| format!("{report:?}"))).collect();
    (zone, diagnostics)
}

/// Builds the zone for these objects.
pub fn zone(objects: &str, flags: &[&str]) -> Arc<Zone> {
    zone_and_diagnostics(objects, flags).0
}

/// Returns a query for `NAME TYPE`, with EDNS if `payload` is set.
pub fn query(question: &str, payload: Option<u16>) -> Vec<u8> {
    let (name, rtype) = question.split_once(' ').unwrap_or_else(|| panic!("'{question}' has no type"));
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    let rtype = match rtype.strip_prefix("TYPE") {
        Some(number) => RecordType::from(number.parse::<u16>().unwrap()),
        None => rtype.parse().unwrap(),
    };
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, rtype));
    message.metadata.recursion_desired = true;
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

/// Returns the reply of `answer()` to a message, if there is one.
pub fn reply(zone: &Zone, caller: Caller<'_>, query: &[u8], limit: Limit) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 65_535];
    match answer(zone, caller, query, limit, &mut callsign::answer::Scratch::new(u16::MAX), &mut buffer) {
        Verdict::Reply { len, .. } => {
            buffer.truncate(len);
            Some(buffer)
        }
        Verdict::Drop => None,
        Verdict::Forward(_) => panic!("nothing is forwarded in this test"),
    }
}

/// Queries `NAME TYPE` and returns the whole reply as text; see [`text`].
pub fn ask(zone: &Zone, caller: Caller<'_>, question: &str) -> String {
    text(&reply(zone, caller, &query(question, Some(1232)), Limit::Stream).unwrap())
}

/// Formats a reply as text: the rcode and the flags AA and TC, then one record per line. Answers are complete. The SOA
/// of an authority section becomes `soa OWNER`, because its numbers vary; an additional record becomes `glue RECORD`.
pub fn text(reply: &[u8]) -> String {
    let message = Message::from_vec(reply).unwrap_or_else(|error| panic!("{error}: {reply:?}"));
    let mut lines = vec![format!("{:?}", message.metadata.response_code).to_uppercase()];
    if message.metadata.authoritative {
        lines[0] += " aa";
    }
    if message.metadata.truncation {
        lines[0] += " tc";
    }
    lines.extend(message.answers.iter().map(line));
    for record in &message.authorities {
        lines.push(format!("soa {}", record.name));
        assert_eq!(record.record_type(), RecordType::SOA, "the authority section holds only a SOA");
    }
    lines.extend(message.additionals.iter().map(|record| format!("glue {}", line(record))));
    lines.join("\n")
}

fn line(record: &Record) -> String {
    let data = match &record.data {
        RData::SOA(soa) => {
            format!("{} {} SERIAL {} {} {} {}", soa.mname, soa.rname, soa.refresh, soa.retry, soa.expire, soa.minimum)
        }
        RData::TXT(txt) => format!("\"{txt}\""),
        other => other.to_string(),
    };
    format!("{} {} {} {data}", record.name, record.ttl, record.record_type())
}
