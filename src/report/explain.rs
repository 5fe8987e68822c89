//! Why a name resolves, or does not: each rule in order, what it looked for and found, the winner, the answer.

use std::fmt::Write as _;
use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name as WireName, RecordType};
use serde::Serialize;
use thiserror::Error;

use crate::answer::{ForwardReason, Limit, Scratch, Verdict, answer};
use crate::resolve::{Node, Outcome, Recorded, Step, StepResult, resolve};
use crate::wire::{Name, NameError, name_from_text, text_of};
use crate::zone::{Asker, Caller, NamespaceName, Origin, Zone};

/// Why nothing can be explained.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExplainError {
    /// The name.
    #[error("'{0}' is no name: {1}; labels have 1 to 63 characters")]
    NoName(String, NameError),
    /// The type.
    #[error("'{0}' is no record type; write A, AAAA, SRV, PTR or TYPE65")]
    NoType(String),
    /// Who asks.
    #[error("from {0}: there is no namespace of that name")]
    NoCaller(String),
    /// A message that another parser refuses.
    #[error("the message cannot be read: {0}")]
    Unreadable(String),
}

/// A name from text, in the form that is resolved.
///
/// # Errors
/// When it is none.
pub fn name_of(text: &str) -> Result<Name, ExplainError> {
    let wire = name_from_text(text).map_err(|error| ExplainError::NoName(text.to_owned(), error))?;
    Name::parse(&wire, 0).map_err(|error| ExplainError::NoName(text.to_owned(), error))
}

/// A record type from text.
///
/// # Errors
/// When it is none.
pub fn type_of(text: &str) -> Result<RecordType, ExplainError> {
    let upper = text.to_ascii_uppercase();
    let number = upper.strip_prefix("TYPE").and_then(|number| number.parse::<u16>().ok());
    let known = number.map(RecordType::from).or_else(|| upper.parse().ok());
    known.ok_or_else(|| ExplainError::NoType(text.to_owned()))
}

/// Who asks, and how that is known.
#[derive(Clone, Debug)]
pub struct CallerSpec {
    /// The namespace, if it is known.
    pub namespace: Option<NamespaceName>,
    /// How.
    pub reason: String,
}

impl CallerSpec {
    /// Somebody in this namespace.
    pub fn new(namespace: Option<NamespaceName>, reason: String) -> CallerSpec {
        CallerSpec { namespace, reason }
    }

    /// The caller that `--from` means, as far as the table knows: a namespace or an address.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(zone: &Zone, from: Option<&str>) -> Result<CallerSpec, ExplainError> {
        let settings = &zone.settings;
        let Some(text) = from else {
            let namespace = settings.namespace.clone();
            let reason = if namespace.is_some() { "--namespace" } else { "nobody said who asks: add --from" };
            return Ok(CallerSpec::new(namespace, reason.to_owned()));
        };
        if let Ok(address) = text.parse::<IpAddr>() {
            let (namespace, origin) = zone.namespace_of(address);
            return Ok(CallerSpec::new(namespace.cloned(), reason(address, &origin)));
        }
        let namespace = settings.namespace_name(text).ok().filter(|name| zone.namespace(name.as_label()).is_some());
        match namespace {
            Some(_) => Ok(CallerSpec::new(namespace, "told".to_owned())),
            None => Err(ExplainError::NoCaller(text.to_owned())),
        }
    }
}

/// Everything that explain says.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// The name, as it was read.
    pub name: String,
    /// The type asked for.
    pub r#type: String,
    /// Who asks.
    pub from: From,
    /// Each rule that was tried.
    pub steps: Vec<StepJson>,
    /// What the name is.
    pub outcome: String,
    /// The response code; `FORWARDED` where upstreams decide.
    pub rcode: String,
    /// The records of the answer.
    pub answers: Vec<String>,
    /// The answer leads out of the cluster: upstreams say the rest.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub leads_out: bool,
    /// Names that may have been meant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub near: Vec<String>,
    /// What a running server says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<FromServer>,
}

/// Who asks.
#[derive(Debug, Serialize)]
pub struct From {
    /// The namespace, if it is known.
    pub namespace: Option<String>,
    /// How.
    pub reason: String,
}

/// One rule that was tried.
#[derive(Debug, Serialize)]
pub struct StepJson {
    /// Which.
    pub rule: &'static str,
    /// What it looked for.
    pub looked_for: String,
    /// `found`, `nothing`, `hidden` or `skipped`.
    pub found: &'static str,
    /// What, or why.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// What a running server says.
#[derive(Debug, Serialize)]
pub struct FromServer {
    /// Which.
    pub address: String,
    /// Its response code.
    pub rcode: String,
    /// Its answers.
    pub answers: Vec<String>,
    /// Whether that is something else.
    pub differs: bool,
}

/// What the reader of an explanation may learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Everything: also what is hidden from the caller.
    Operator,
    /// What the caller itself may see: what is hidden does not exist.
    Caller,
}

/// Resolves a name, told, and answers it, as the server would.
///
/// # Errors
/// When a message cannot be made or read.
pub fn explain(
    zone: &Zone,
    who: &CallerSpec,
    name: &Name,
    qtype: RecordType,
    sight: Sight,
) -> Result<Explanation, ExplainError> {
    let caller = who.namespace.as_ref().map_or(Caller::Unknown, Caller::Namespace);
    let mut told = Recorded::default();
    let asker = Asker::new(zone, caller);
    let outcome = describe(&resolve(zone, &asker, name, &mut told));
    let query = query(name, qtype)?;
    let mut reply = vec![0; 65_535];
    let mut verdict = answer(zone, caller, &query, Limit::Stream, &mut Scratch::new(0), &mut reply);
    let error = match verdict {
        Verdict::Forward(ask) => Some(ask.reason),
        _ => None,
    };
    if matches!(error, Some(ForwardReason::LeadsOut | ForwardReason::Search)) {
        verdict = answer(zone, caller, &query, Limit::Stream, &mut Scratch::alone(0), &mut reply);
    }
    let (rcode, answers) = match verdict {
        Verdict::Reply { len, .. } => read(&reply[..len])?,
        Verdict::Forward(_) | Verdict::Drop => (FORWARDED.to_owned(), Vec::new()),
    };
    let nothing = !matches!(rcode.as_str(), "NOERROR" | FORWARDED);
    Ok(Explanation {
        name: text_of(name.wire()),
        r#type: qtype.to_string(),
        from: From { namespace: who.namespace.as_ref().map(NamespaceName::text), reason: who.reason.clone() },
        steps: told.0.into_iter().map(|step| told1(step, sight)).collect(),
        outcome,
        rcode,
        answers,
        leads_out: error == Some(ForwardReason::LeadsOut),
        near: if nothing { near(zone, who.namespace.as_ref(), name, sight) } else { Vec::new() },
        server: None,
    })
}

/// In place of an rcode: upstreams decide.
pub const FORWARDED: &str = "FORWARDED";

fn told1(step: Step, sight: Sight) -> StepJson {
    let (found, detail) = match step.finding {
        StepResult::Nothing => ("nothing", String::new()),
        StepResult::Hidden(_) if sight == Sight::Caller => ("nothing", String::new()),
        StepResult::Found(what) => ("found", what),
        StepResult::Hidden(what) => ("hidden", what),
        StepResult::Skipped(error) => ("skipped", error),
    };
    StepJson { rule: step.rule, looked_for: step.looked_for, found, detail }
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
        Outcome::NotOurs => "not a name of the cluster: upstreams are asked, if there are any".to_owned(),
        Outcome::NotReady => "the cluster has not been learnt".to_owned(),
    }
}

/// The query for a name.
///
/// # Errors
/// When none can be made.
pub fn query(name: &Name, qtype: RecordType) -> Result<Vec<u8>, ExplainError> {
    let failed = |error: &dyn std::fmt::Display| ExplainError::Unreadable(error.to_string());
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    let labels = (0..name.labels()).map(|index| name.label(index).get(1..).unwrap_or(&[]));
    let mut wire = WireName::from_labels(labels).map_err(|error| failed(&error))?;
    wire.set_fqdn(true);
    message.add_query(Query::query(wire, qtype));
    message.metadata.recursion_desired = true;
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message.to_vec().map_err(|error| failed(&error))
}

/// Rcode and answers of a reply.
///
/// # Errors
/// When it is none.
pub fn read(reply: &[u8]) -> Result<(String, Vec<String>), ExplainError> {
    let message = Message::from_vec(reply).map_err(|error| ExplainError::Unreadable(error.to_string()))?;
    let rcode = format!("{:?}", message.metadata.response_code).to_uppercase();
    let answers = message
        .answers
        .iter()
        .map(|record| format!("{} {} {} {}", record.name, record.ttl, record.record_type(), record.data));
    Ok((rcode, answers.collect()))
}

fn reason(address: IpAddr, origin: &Origin) -> String {
    match origin {
        Origin::Explicit => "told".to_owned(),
        Origin::Callers(_) => format!("--callers has {address}"),
        Origin::Pod => format!("one live pod has {address}"),
        Origin::Default => "--namespace".to_owned(),
        Origin::Unknown => format!("no rule knows {address}"),
    }
}

/// Names that may have been meant, each with how to write it.
fn near(zone: &Zone, own: Option<&NamespaceName>, name: &Name, sight: Sight) -> Vec<String> {
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
        if hidden && sight == Sight::Caller {
            continue;
        }
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
    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let who = match &self.from.namespace {
            Some(namespace) => format!("namespace {namespace} ({})", self.from.reason),
            None => format!("a caller of no known namespace ({})", self.from.reason),
        };
        let _ = writeln!(text, "{} {}, asked by {who}\n", self.name, self.r#type);
        let rules = self.steps.iter().map(|step| step.rule.len()).max().unwrap_or(0);
        let looked_for = self.steps.iter().map(|step| step.looked_for.len()).max().unwrap_or(0);
        for step in &self.steps {
            let found =
                if step.detail.is_empty() { step.found.to_owned() } else { format!("{}: {}", step.found, step.detail) };
            let _ = writeln!(text, "  {:rules$}  {:looked_for$}  {found}", step.rule, step.looked_for);
        }
        let _ = writeln!(text, "\n{}: {}", self.rcode, self.outcome);
        for answer in &self.answers {
            let _ = writeln!(text, "  {answer}");
        }
        if self.leads_out {
            let _ = writeln!(text, "  and what upstreams say of where that leads");
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
            if server.differs {
                let _ = writeln!(text, "  (it was asked from this machine, whose namespace it may not know)");
            }
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
