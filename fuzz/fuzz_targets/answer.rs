//! Whole replies: another parser can read them, they stay within their limit and echo the query's ID and question.
#![no_main]

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use callsign::answer::{Limit, Scratch, Verdict, answer};
use callsign::cluster::{manifests, publish};
use callsign::server::prefetch;
use callsign::zone::{Builder, Caller, Domain, PodNames, Settings, Zone};
use hickory_proto::op::Message;
use libfuzzer_sys::fuzz_target;

static ZONE: LazyLock<Arc<Zone>> = LazyLock::new(|| {
    let mut text = String::new();
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/demo")).unwrap() {
        text += &format!("---\n{}\n", std::fs::read_to_string(file.unwrap().path()).unwrap());
    }
    let mut settings = Settings::new(vec![Domain::new("cluster.local").unwrap(), Domain::new("corp.example").unwrap()]);
    settings.pod_names = PodNames::Any;
    settings.reverse = vec!["10.96.0.0/12".parse().unwrap(), "fd00::/16".parse().unwrap()];
    settings.namespace = settings.namespace_name("web").ok();
    settings.advertise(&["10.96.0.53".parse().unwrap(), "fd00::53".parse().unwrap()]);
    let (changes, _) = manifests::read_text(&text).unwrap();
    let events = changes.into_iter().map(callsign::cluster::Event::Change).collect();
    publish::build(Builder::new(Arc::new(settings)), events).0
});

fuzz_target!(|input: &[u8]| {
    let Some((&choice, message)) = input.split_first() else { return };
    let (limit, max_len) = if choice & 1 == 0 { (Limit::Datagram, 1232) } else { (Limit::Stream, 65_535) };
    let caller = if choice & 2 == 0 { Caller::Unknown } else { Caller::Address(IpAddr::from([127, 0, 0, 1])) };
    prefetch::fetch(&ZONE, std::iter::once(message));
    let mut reply = vec![0; 65_535];
    let Verdict::Reply { len, .. } = answer(&ZONE, caller, message, limit, &mut Scratch::new(choice.into()), &mut reply) else {
        assert!(message.len() < 12 || message[2] & 0x80 != 0);
        return;
    };
    let reply = &reply[..len];
    assert!(len <= max_len && reply[..2] == message[..2] && reply[2] & 0x80 != 0);
    let parsed = Message::from_vec(reply).expect("a reply that another parser can read");
    match parsed.queries.len() {
        0 => {
            // A query for a cookie alone has no question, either (RFC 7873 section 5.4).
            let is_cookie = reply[3] & 15 == 0 && message[4..6] == [0, 0];
            assert!(is_cookie || matches!(reply[3] & 15, 1 | 4), "only FORMERR and NOTIMP have no question");
        }
        _ => {
            let mut end = 12;
            while message[end] != 0 {
                end += 1 + usize::from(message[end]);
            }
            assert_eq!(reply[12..end + 5], message[12..end + 5]);
        }
    }
});
