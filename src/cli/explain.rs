//! `callsign explain NAME`: each rule in order, what it looked for and found, the winner, the answer.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use clap::{Args, ValueEnum};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name as WireName, RecordType};
use serde::Serialize;

use super::source::{self, Cluster};
use super::{Failure, NO, UNAVAILABLE, USAGE, print};
use crate::answer::{Limit, Scratch, Verdict, answer};
use crate::config::{NameArgs, SourceArgs};
use crate::resolve::{Finding, Node, Outcome, Step, Told, resolve};
use crate::wire::{Name, name_from_text, text_of};
use crate::zone::{Asker, Caller, NamespaceName, Origin, Zone};

pub(super) const EXAMPLES: &str = "\
Examples:
  callsign explain api --manifests deploy/demo --from web
  callsign explain scheduler.backoffice-workers --manifests deploy/demo --server 127.0.0.1:5300
  kubectl get svc,endpointslices,pods,ns -A -o yaml | callsign explain api --manifests - --from web";

/// `-o` of explain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Flags of `callsign explain`.
#[derive(Args, Clone, Debug)]
pub(super) struct ExplainArgs {
    /// The name, as an application writes it
    name: String,
    /// Who asks: a namespace, a pod (POD or NAMESPACE/POD) or an address
    #[arg(long, value_name = "NS|POD|IP")]
    from: Option<String>,
    /// The type asked for
    #[arg(long = "type", short = 't', value_name = "TYPE", default_value = "A")]
    qtype: String,
    /// Ask this running server too, and say if it differs
    #[arg(long, value_name = "ADDR[:PORT]")]
    server: Option<String>,
    /// Form of the output
    #[arg(long, short = 'o', value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    names: NameArgs,
}

/// Everything that explain says.
#[derive(Debug, Serialize)]
pub(super) struct Explanation {
    name: String,
    r#type: String,
    from: From,
    steps: Vec<Told1>,
    outcome: String,
    rcode: String,
    answers: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    near: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<FromServer>,
}

#[derive(Debug, Serialize)]
struct From {
    namespace: Option<String>,
    because: String,
}

#[derive(Debug, Serialize)]
struct Told1 {
    rule: &'static str,
    sought: String,
    found: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
}

#[derive(Debug, Serialize)]
struct FromServer {
    address: String,
    rcode: String,
    answers: Vec<String>,
    differs: bool,
}

/// Explains one name.
pub(super) fn run(args: &ExplainArgs) -> Result<(), Failure> {
    let name = name_from_text(&args.name).map_err(|why| {
        Failure::new(USAGE, format!("'{}' is no name: {why}; labels have 1 to 63 characters", args.name))
    })?;
    let qtype = record_type(&args.qtype)?;
    let cluster = source::read(&args.source, &args.names)?;
    let (from, namespace) = caller(&cluster, args.from.as_deref())?;
    let caller = match (&namespace, &args.from) {
        (Some(namespace), _) => Caller::Namespace(namespace),
        _ => Caller::Unknown,
    };
    let name = Name::parse(&name, 0).map_err(|why| Failure::new(USAGE, why))?;
    let mut explanation = explain(&cluster.zone, caller, &name, qtype)?;
    explanation.from = from;
    if !matches!(explanation.rcode.as_str(), "NOERROR") {
        explanation.near = near(&cluster.zone, namespace.as_ref(), &name);
    }
    if let Some(server) = &args.server {
        explanation.server = Some(ask(server, &name, qtype, &explanation)?);
    }
    let text = match args.output {
        Output::Text => explanation.text(),
        Output::Json => serde_json::to_string_pretty(&explanation).map_err(|why| Failure::new(NO, why))? + "\n",
    };
    print(&text)?;
    match explanation.rcode.as_str() {
        "NOERROR" if explanation.server.as_ref().is_none_or(|server| !server.differs) => Ok(()),
        _ => Err(Failure::silent(NO)),
    }
}

fn record_type(text: &str) -> Result<RecordType, Failure> {
    let upper = text.to_ascii_uppercase();
    let number = upper.strip_prefix("TYPE").and_then(|number| number.parse::<u16>().ok());
    let known = number.map(RecordType::from).or_else(|| upper.parse().ok());
    known.ok_or_else(|| Failure::new(USAGE, format!("'{text}' is no record type; write A, AAAA, SRV, PTR or TYPE65")))
}

/// Who asks, and how that is known.
fn caller(cluster: &Cluster, from: Option<&str>) -> Result<(From, Option<NamespaceName>), Failure> {
    let zone = &cluster.zone;
    let settings = &zone.settings;
    let Some(text) = from else {
        let namespace = settings.namespace.clone();
        let because = match &namespace {
            Some(_) => "--namespace",
            None => "nobody said who asks: add --from",
        };
        return Ok((
            From { namespace: namespace.as_ref().map(NamespaceName::text), because: because.to_owned() },
            namespace,
        ));
    };
    let told = |namespace: Option<NamespaceName>, because: String| {
        Ok((From { namespace: namespace.as_ref().map(NamespaceName::text), because }, namespace))
    };
    if let Ok(address) = text.parse::<IpAddr>() {
        let (namespace, origin) = zone.namespace_of(address);
        if let Some(namespace) = namespace {
            return told(Some(namespace.clone()), because(address, &origin));
        }
        let namespace = cluster.pod_namespace(text).and_then(|name| settings.namespace_name(&name).ok());
        let because = match &namespace {
            Some(_) => format!("a pod has {address}"),
            None => format!("no rule knows {address}"),
        };
        return told(namespace, because);
    }
    let namespace = settings.namespace_name(text).ok().filter(|name| zone.namespace(name.as_label()).is_some());
    if namespace.is_some() {
        return told(namespace, "told".to_owned());
    }
    let of_pod = cluster.pod_namespace(text).and_then(|name| settings.namespace_name(&name).ok());
    match of_pod {
        Some(namespace) => told(Some(namespace), format!("pod {text}")),
        None => Err(Failure::new(NO, format!("--from {text}: there is no namespace and no pod of that name"))),
    }
}

fn because(address: IpAddr, origin: &Origin) -> String {
    match origin {
        Origin::Told => "told".to_owned(),
        Origin::Callers(_) => format!("--callers has {address}"),
        Origin::Pod => format!("one live pod has {address}"),
        Origin::Default => "--namespace".to_owned(),
        Origin::Unknown => format!("no rule knows {address}"),
    }
}

/// Resolves a name, told, and answers it, as the server would.
pub(super) fn explain(zone: &Zone, caller: Caller<'_>, name: &Name, qtype: RecordType) -> Result<Explanation, Failure> {
    let mut told = Told::default();
    let asker = Asker::new(zone, caller);
    let outcome = describe(&resolve(zone, &asker, name, &mut told));
    let query = query(name, qtype)?;
    let mut reply = vec![0; 65_535];
    let (rcode, answers) = match answer(zone, caller, &query, Limit::Stream, &mut Scratch::new(0), &mut reply) {
        Verdict::Reply { len, .. } => read(&reply[..len])?,
        Verdict::Forward(_) | Verdict::Drop => ("FORWARDED".to_owned(), Vec::new()),
    };
    Ok(Explanation {
        name: text_of(name.wire()),
        r#type: qtype.to_string(),
        from: From { namespace: None, because: String::new() },
        steps: told.0.into_iter().map(told1).collect(),
        outcome,
        rcode,
        answers,
        near: Vec::new(),
        server: None,
    })
}

fn told1(step: Step) -> Told1 {
    let (found, detail) = match step.finding {
        Finding::Nothing => ("nothing", String::new()),
        Finding::Found(what) => ("found", what),
        Finding::Hidden(what) => ("hidden", what),
        Finding::Skipped(why) => ("skipped", why),
    };
    Told1 { rule: step.rule, sought: step.sought, found, detail }
}

fn describe(outcome: &Outcome<'_>) -> String {
    match outcome {
        Outcome::Found(node, _) => match node {
            Node::Empty => "the name exists, and has no records of its own".to_owned(),
            Node::Apex => "the cluster domain".to_owned(),
            Node::NameServer => "the cluster's name server".to_owned(),
            Node::Version => "the schema version".to_owned(),
            Node::Service(service) => format!("Service {}", service.name.text()),
            Node::Port(service, labels) => format!("port {} of Service {}", text_of(labels.port), service.name.text()),
            Node::Endpoint(endpoint) => format!("endpoint of Service {}", endpoint.service.name.text()),
            Node::Address(address) => format!("the address {address}"),
            Node::Localhost => "loopback".to_owned(),
            Node::Reverse(address) => format!("the names of {address}"),
        },
        Outcome::Missing(_) => "the name does not exist".to_owned(),
        Outcome::NotOurs => "not a name of the cluster: the client's next nameserver is asked".to_owned(),
        Outcome::NotReady => "the cluster has not been learnt".to_owned(),
    }
}

fn query(name: &Name, qtype: RecordType) -> Result<Vec<u8>, Failure> {
    let failed = |why: &dyn std::fmt::Display| Failure::new(USAGE, why);
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    let labels = (0..name.labels()).map(|index| name.label(index).get(1..).unwrap_or(&[]));
    let mut wire = WireName::from_labels(labels).map_err(|why| failed(&why))?;
    wire.set_fqdn(true);
    message.add_query(Query::query(wire, qtype));
    message.metadata.recursion_desired = true;
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message.to_vec().map_err(|why| failed(&why))
}

/// Rcode and answers of a reply.
fn read(reply: &[u8]) -> Result<(String, Vec<String>), Failure> {
    let message = Message::from_vec(reply)
        .map_err(|why| Failure::new(UNAVAILABLE, format!("the reply cannot be read: {why}")))?;
    let rcode = format!("{:?}", message.metadata.response_code).to_uppercase();
    let answers = message
        .answers
        .iter()
        .map(|record| format!("{} {} {} {}", record.name, record.ttl, record.record_type(), record.data));
    Ok((rcode, answers.collect()))
}

/// Asks a running server. It sees this machine's address, not the one of `--from`.
fn ask(server: &str, name: &Name, qtype: RecordType, explained: &Explanation) -> Result<FromServer, Failure> {
    let address = server.parse::<SocketAddr>().or_else(|_| server.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)));
    let address = address
        .map_err(|_| Failure::new(USAGE, format!("--server '{server}' is no address; write ADDR or ADDR:PORT")))?;
    let exchange = || -> std::io::Result<Vec<u8>> {
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        let query = query(name, qtype).map_err(|why| std::io::Error::other(why.line))?;
        let mut reply = vec![0; 65_535];
        for _ in 0..2 {
            socket.send(&query)?;
            if let Ok(length) = socket.recv(&mut reply) {
                reply.truncate(length);
                return Ok(reply);
            }
        }
        Err(std::io::ErrorKind::TimedOut.into())
    };
    let reply =
        exchange().map_err(|why| Failure::new(UNAVAILABLE, format!("--server {address} does not answer: {why}")))?;
    let (rcode, answers) = read(&reply)?;
    // Rotation and what is left of a TTL are no difference.
    let records = |answers: &[String]| -> BTreeSet<String> {
        answers
            .iter()
            .map(|line| {
                line.splitn(3, ' ')
                    .enumerate()
                    .filter(|(at, _)| *at != 1)
                    .map(|(_, part)| part)
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect()
    };
    let differs = rcode != explained.rcode || records(&answers) != records(&explained.answers);
    Ok(FromServer { address: address.to_string(), rcode, answers, differs })
}

/// Names that may have been meant, each with how to write it.
fn near(zone: &Zone, own: Option<&NamespaceName>, name: &Name) -> Vec<String> {
    let first = text_of(name.label(0));
    let second = (name.labels() > 1).then(|| text_of(name.label(1)));
    let mut near: Vec<(usize, String)> = Vec::new();
    for service in zone.services() {
        let (label, place) = (text_of(service.name.service()), text_of(service.name.namespace()));
        let here = own.is_some_and(|own| own.label() == service.name.namespace());
        let distance = distance(&first, &label);
        let asked_there = second.as_ref().is_some_and(|second| *second == place);
        let allowed = (first.len() / 3).clamp(1, 2);
        let exact = distance == 0;
        if !(exact || distance <= allowed && (here || asked_there || second.is_none())) {
            continue;
        }
        let write = if here && second.is_none() { label.clone() } else { format!("{label}.{place}") };
        let hidden = service.visibility.as_ref().is_some_and(|visibility| !visibility.admits(own));
        let note = match (hidden, service.answers()) {
            (true, _) => "; it exists, but is not visible to this caller",
            (_, false) => "; it exists, but has no ready endpoint",
            _ => "",
        };
        near.push((distance * 2 + usize::from(!here), format!("{write}{note}")));
    }
    near.sort();
    near.dedup();
    near.into_iter().take(5).map(|(_, text)| text).collect()
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (index, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (at, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[at + 1];
            row[at + 1] = replaced.min(row[at] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

impl Explanation {
    fn text(&self) -> String {
        let mut text = String::new();
        let who = match &self.from.namespace {
            Some(namespace) => format!("namespace {namespace} ({})", self.from.because),
            None => format!("a caller of no known namespace ({})", self.from.because),
        };
        let _ = writeln!(text, "{} {}, asked by {who}\n", self.name, self.r#type);
        let rules = self.steps.iter().map(|step| step.rule.len()).max().unwrap_or(0);
        let sought = self.steps.iter().map(|step| step.sought.len()).max().unwrap_or(0);
        for step in &self.steps {
            let found =
                if step.detail.is_empty() { step.found.to_owned() } else { format!("{}: {}", step.found, step.detail) };
            let _ = writeln!(text, "  {:rules$}  {:sought$}  {found}", step.rule, step.sought);
        }
        let _ = writeln!(text, "\n{}: {}", self.rcode, self.outcome);
        for answer in &self.answers {
            let _ = writeln!(text, "  {answer}");
        }
        if !self.near.is_empty() {
            let _ = writeln!(text, "\nperhaps you mean");
            for near in &self.near {
                let _ = writeln!(text, "  {near}");
            }
        }
        if let Some(server) = &self.server {
            let verdict = if server.differs { "says otherwise" } else { "says the same" };
            let _ = writeln!(text, "\n{} {verdict}: {}", server.address, server.rcode);
            for answer in server.answers.iter().filter(|_| server.differs) {
                let _ = writeln!(text, "  {answer}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::distance;

    #[test]
    fn distances() {
        for (a, b, expected) in [
            ("", "", 0),
            ("api", "api", 0),
            ("api", "apo", 1),
            ("api", "ap", 1),
            ("kitten", "sitting", 3),
            ("", "ab", 2),
        ] {
            assert_eq!(distance(a, b), expected, "{a} {b}");
        }
    }
}
