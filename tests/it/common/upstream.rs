//! A scripted upstream: its replies are a function of the query.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, Record};

/// The transport of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Udp,
    Tcp,
}

type Answer = dyn Fn(&Message, Over) -> Vec<Vec<u8>> + Send + Sync;

/// An upstream on its own port, over UDP and TCP.
pub struct Upstream {
    pub address: SocketAddr,
    asked: Arc<AtomicUsize>,
    questions: Arc<Mutex<Vec<String>>>,
    silent: Arc<AtomicBool>,
}

impl Upstream {
    /// Starts an upstream that sends the messages that `answer` returns, if any.
    pub fn start(answer: impl Fn(&Message, Over) -> Vec<Vec<u8>> + Send + Sync + 'static) -> Upstream {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()) {
                break (udp, tcp);
            }
        };
        let upstream = Upstream {
            address: udp.local_addr().unwrap(),
            asked: Arc::default(),
            questions: Arc::default(),
            silent: Arc::default(),
        };
        let answer: Arc<Answer> = Arc::new(answer);
        let (asked, questions, silent) = (upstream.asked.clone(), upstream.questions.clone(), upstream.silent.clone());
        let take = move |query: &[u8], over| {
            let Ok(message) = Message::from_vec(query) else { return Vec::new() };
            let Some(question) = message.queries.first() else { return Vec::new() };
            // A loop probe is not a client's question.
            if !silent.load(Ordering::SeqCst) && question.query_type() == hickory_proto::rr::RecordType::HINFO {
                return vec![reply(&message, ResponseCode::NXDomain, &[]).to_vec().unwrap()];
            }
            asked.fetch_add(1, Ordering::SeqCst);
            questions.lock().unwrap().push(format!("{} {}", question.name().to_lowercase(), question.query_type()));
            if silent.load(Ordering::SeqCst) { Vec::new() } else { answer(&message, over) }
        };
        let taken = take.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                for reply in taken(&buffer[..length], Over::Udp) {
                    let _ = udp.send_to(&reply, from);
                }
            }
        });
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let (mut stream, take) = (stream.unwrap(), take.clone());
                std::thread::spawn(move || {
                    let mut length = [0; 2];
                    while stream.read_exact(&mut length).is_ok() {
                        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
                        stream.read_exact(&mut query).unwrap();
                        for reply in take(&query, Over::Tcp) {
                            let _ = stream.write_all(&(reply.len() as u16).to_be_bytes());
                            let _ = stream.write_all(&reply);
                        }
                    }
                });
            }
        });
        upstream
    }

    /// Starts an upstream that answers from these records (`OWNER TTL TYPE DATA`, as in a zone file). Other names get
    /// NXDOMAIN with a SOA of 60 seconds.
    pub fn serving(records: &str) -> Upstream {
        let records = parse(records);
        Upstream::start(move |query, _| vec![from_zone(&records, query)])
    }

    /// Returns the number of queries so far, without loop probes.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    pub fn questions(&self) -> Vec<String> {
        self.questions.lock().unwrap().clone()
    }

    /// Stops replying, or starts again.
    pub fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::SeqCst);
    }

    /// Returns the flag that selects this upstream.
    pub fn flag(&self) -> String {
        format!("--upstream={}", self.address)
    }
}

/// Parses records in zone file syntax.
pub fn parse(records: &str) -> Vec<Record> {
    let lines = records.lines().map(str::trim).filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let mut words = line.splitn(4, ' ');
            let mut next = || words.next().unwrap_or_else(|| panic!("'{line}' is not a record"));
            let (owner, ttl, rtype, data) = (next(), next().parse().unwrap(), next().parse().unwrap(), next());
            let data = RData::try_from_str(rtype, data).unwrap_or_else(|error| panic!("'{line}': {error}"));
            Record::from_rdata(name(owner), ttl, data)
        })
        .collect()
}

pub fn name(text: &str) -> Name {
    let mut name = Name::from_ascii(text).unwrap();
    name.set_fqdn(true);
    name
}

/// Returns a reply to the query with this rcode and these answers. As in real replies, an owner that is the name of the
/// question points to it, whatever its case.
pub fn reply(query: &Message, rcode: ResponseCode, answers: &[Record]) -> Message {
    let mut reply = query.clone().into_response();
    reply.metadata.response_code = rcode;
    reply.metadata.recursion_available = true;
    reply.answers = answers.to_vec();
    for record in &mut reply.answers {
        if let Some(question) = reply.queries.first().filter(|question| record.name == *question.name()) {
            record.name = question.name().clone();
        }
    }
    reply
}

/// Returns the reply of a resolver that knows these records and follows CNAMEs.
pub fn from_zone(records: &[Record], query: &Message) -> Vec<u8> {
    let question = query.queries.first().unwrap();
    let mut owner = question.name().to_lowercase();
    let mut answers = Vec::new();
    let exists = loop {
        let here: Vec<&Record> = records.iter().filter(|record| record.name == owner).collect();
        answers.extend(here.iter().copied().filter(|record| record.record_type() == question.query_type()).cloned());
        let alias = here.iter().find_map(|record| match &record.data {
            RData::CNAME(target) => Some(((*record).clone(), target.0.clone())),
            _ => None,
        });
        match alias {
            Some((record, target)) if answers.len() < 10 => {
                answers.push(record);
                owner = target.to_lowercase();
            }
            _ => break !here.is_empty() || !answers.is_empty(),
        }
    };
    let rcode = if exists { ResponseCode::NoError } else { ResponseCode::NXDomain };
    let negative = !answers.iter().any(|record| record.record_type() == question.query_type());
    let mut reply = reply(query, rcode, &answers);
    if negative {
        reply.authorities = parse("example 60 SOA ns.example. hostmaster.example. 1 2 3 4 60");
    }
    reply.to_vec().unwrap()
}

/// Waits up to ten seconds for a condition.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("timed out; expected: {what}");
}
