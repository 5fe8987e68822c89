//! Explains how a name resolves: the rules in order with their results, the outcome, and the answer.

use std::fmt::Write as _;
use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name as WireName, RecordType};
use serde::Serialize;
use thiserror::Error;

use crate::answer::{ForwardReason, Limit, Scratch, Verdict, answer};
use crate::resolve::{Node, Outcome, Recorded, Step, StepResult, resolve};
use crate::wire::{Name, NameError, name_from_text, text_of};
use crate::zone::{Caller, LazyCaller, NamespaceName, Origin, Zone};

/// Reasons why a name cannot be explained.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExplainError {
    /// The name is not valid.
    #[error("'{0}' is not a valid name: {1}; labels have 1 to 63 characters")]
    InvalidName(String, NameError),
    /// The record type is unknown.
    #[error("'{0}' is not a record type; use A, AAAA, SRV, PTR or a number, as in TYPE65")]
    UnknownType(String),
    /// The caller's namespace does not exist.
    #[error("from {0}: there is no such namespace")]
    UnknownNamespace(String),
    /// The other DNS library cannot parse or encode the message.
    #[error("cannot process the DNS message: {0}")]
    Unreadable(String),
}

/// Parses a name from text, in the form that the resolver takes.
///
/// # Errors
/// If the text is not a valid name.
pub fn name_of(text: &str) -> Result<Name, ExplainError> {
    let wire = name_from_text(text).map_err(|error| ExplainError::InvalidName(text.to_owned(), error))?;
    Name::parse(&wire, 0).map_err(|error| ExplainError::InvalidName(text.to_owned(), error))
}

/// Parses a record type from text.
///
/// # Errors
/// If the text is not a record type.
pub fn type_of(text: &str) -> Result<RecordType, ExplainError> {
    let upper = text.to_ascii_uppercase();
    let number = upper.strip_prefix("TYPE").and_then(|number| number.parse::<u16>().ok());
    let known = number.map(RecordType::from).or_else(|| upper.parse().ok());
    known.ok_or_else(|| ExplainError::UnknownType(text.to_owned()))
}

/// A caller, and how its namespace was determined.
#[derive(Clone, Debug)]
pub struct CallerSpec {
    /// The namespace, if it is known.
    pub namespace: Option<NamespaceName>,
    /// How it was determined.
    pub reason: String,
}

impl CallerSpec {
    /// Creates a caller in this namespace.
    pub fn new(namespace: Option<NamespaceName>, reason: String) -> CallerSpec {
        CallerSpec { namespace, reason }
    }

    /// Determines the caller from the value of `--from`, which is a namespace of the table or an address.
    ///
    /// # Errors
    /// If the value is neither.
    pub fn parse(zone: &Zone, from: Option<&str>) -> Result<CallerSpec, ExplainError> {
        let settings = &zone.settings;
        let Some(text) = from else {
            let namespace = settings.namespace.clone();
            let reason = if namespace.is_some() { "--namespace" } else { "no caller given; add --from" };
            return Ok(CallerSpec::new(namespace, reason.to_owned()));
        };
        if let Ok(address) = text.parse::<IpAddr>() {
            let (namespace, origin) = zone.namespace_of(address);
            return Ok(CallerSpec::new(namespace.cloned(), reason(address, &origin)));
        }
        let namespace = settings.namespace_name(text).ok().filter(|name| zone.namespace(name.as_label()).is_some());
        match namespace {
            Some(_) => Ok(CallerSpec::new(namespace, "given explicitly".to_owned())),
            None => Err(ExplainError::UnknownNamespace(text.to_owned())),
        }
    }
}

/// The output of `callsign explain`.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// The name as parsed.
    pub name: String,
    /// The qtype.
    pub r#type: String,
    /// The caller.
    pub from: From,
    /// The rules that were tried.
    pub steps: Vec<StepJson>,
    /// The kind of thing that the name denotes.
    pub outcome: String,
    /// The rcode, or `FORWARDED` if upstreams decide.
    pub rcode: String,
    /// The records of the answer.
    pub answers: Vec<String>,
    /// Whether the answer is a CNAME to a name outside of the cluster, whose records come from upstreams.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub leads_out: bool,
    /// Similar names that exist.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub near: Vec<String>,
    /// The reply of a running server, if one was queried.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<FromServer>,
}

/// The caller, for JSON output.
#[derive(Debug, Serialize)]
pub struct From {
    /// The namespace, if it is known.
    pub namespace: Option<String>,
    /// How it was determined.
    pub reason: String,
}

/// A rule that was tried, for JSON output.
#[derive(Debug, Serialize)]
pub struct StepJson {
    /// Name of the rule.
    pub rule: &'static str,
    /// The object or name that the rule looked for.
    pub looked_for: String,
    /// `found`, `nothing`, `hidden` or `skipped`.
    pub found: &'static str,
    /// The object that was found, or the reason for skipping the rule.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// The reply of a running server.
#[derive(Debug, Serialize)]
pub struct FromServer {
    /// Its address.
    pub address: String,
    /// Its rcode.
    pub rcode: String,
    /// Its answers.
    pub answers: Vec<String>,
    /// Whether the reply differs from the explanation.
    pub differs: bool,
}

/// The intended reader of an explanation, who determines its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// An operator, to whom objects hidden from the caller are shown.
    Operator,
    /// The caller itself: hidden objects appear not to exist.
    Caller,
}

/// Resolves a name with a trace, and answers it as the server would.
///
/// # Errors
/// If a message cannot be encoded or parsed.
pub fn explain(
    zone: &Zone,
    who: &CallerSpec,
    name: &Name,
    qtype: RecordType,
    audience: Audience,
) -> Result<Explanation, ExplainError> {
    let caller = who.namespace.as_ref().map_or(Caller::Unknown, Caller::Namespace);
    let trace = Recorded::default();
    let lazy_caller = LazyCaller::new(zone, caller);
    let outcome = describe(&resolve(&lazy_caller, name, &trace));
    let query = query(name, qtype)?;
    let mut reply = vec![0; 65_535];
    let mut verdict = answer(zone, caller, &query, Limit::Stream, &mut Scratch::new(0), &mut reply);
    let error = match verdict {
        Verdict::Forward(ask) => Some(ask.reason),
        _ => None,
    };
    if matches!(error, Some(ForwardReason::LeadsOut | ForwardReason::Search)) {
        verdict = answer(zone, caller, &query, Limit::Stream, &mut Scratch::zone_only(0), &mut reply);
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
        steps: trace.into_steps().into_iter().map(|step| step_json(step, audience)).collect(),
        outcome,
        rcode,
        answers,
        leads_out: error == Some(ForwardReason::LeadsOut),
        near: if nothing { near(zone, who.namespace.as_ref(), name, audience) } else { Vec::new() },
        server: None,
    })
}

/// Shown instead of an rcode if upstreams decide.
pub const FORWARDED: &str = "FORWARDED";

fn step_json(step: Step, audience: Audience) -> StepJson {
    let (found, detail) = match step.result {
        StepResult::Nothing => ("nothing", String::new()),
        StepResult::Hidden(_) if audience == Audience::Caller => ("nothing", String::new()),
        StepResult::Found(what) => ("found", what),
        StepResult::Hidden(what) => ("hidden", what),
        StepResult::Skipped(error) => ("skipped", error),
    };
    StepJson { rule: step.rule, looked_for: step.looked_for, found, detail }
}

fn describe(outcome: &Outcome<'_>) -> String {
    match outcome {
        Outcome::Found(node, _) => match node {
            Node::Empty => "the name exists, but has no records".to_owned(),
            Node::Apex => "the cluster domain".to_owned(),
            Node::NameServer => "the cluster's name server".to_owned(),
            Node::Version => "the schema version".to_owned(),
            Node::Service(service) => format!("Service {}", service.name.text()),
            Node::Port(service, labels) => format!("port {} of Service {}", text_of(labels.port), service.name.text()),
            Node::Endpoint(endpoint) => format!("endpoint of Service {}", endpoint.service.name.text()),
            Node::Address(address) => format!("the address {address}"),
            Node::Localhost => "the loopback address".to_owned(),
            Node::Reverse(address) => format!("the reverse name of {address}"),
        },
        Outcome::Missing(_) => "the name does not exist".to_owned(),
        Outcome::NotOurs => "not a cluster name; it is forwarded if there are upstreams".to_owned(),
        Outcome::NotReady => "the first sync is not complete".to_owned(),
    }
}

/// Encodes the query for a name.
///
/// # Errors
/// If the query cannot be encoded.
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

/// Parses a reply into its rcode and answers.
///
/// # Errors
/// If the reply cannot be parsed.
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
        Origin::Explicit => "given explicitly".to_owned(),
        Origin::Callers(_) => format!("--callers includes {address}"),
        Origin::Pod => format!("a live pod has the address {address}"),
        Origin::Default => "--namespace".to_owned(),
        Origin::Unknown => format!("no rule matches {address}"),
    }
}

/// Returns similar names, as this caller would write them.
fn near(zone: &Zone, own: Option<&NamespaceName>, name: &Name, audience: Audience) -> Vec<String> {
    let first = text_of(name.label(0));
    let second = (name.labels() > 1).then(|| text_of(name.label(1)));
    let mut near: Vec<(usize, String)> = Vec::new();
    for service in zone.services() {
        let (label, namespace) = (text_of(service.name.service()), text_of(service.name.namespace()));
        let here = own.is_some_and(|own| own.label() == service.name.namespace());
        let distance = strsim::damerau_levenshtein(&first, &label);
        let asked_there = second.as_ref().is_some_and(|second| *second == namespace);
        let allowed = (first.len() / 3).clamp(1, 2);
        let exact = distance == 0;
        if !(exact || distance <= allowed && (here || asked_there || second.is_none())) {
            continue;
        }
        let write = if here && second.is_none() { label.clone() } else { format!("{label}.{namespace}") };
        let hidden = service.visibility.as_ref().is_some_and(|visibility| !visibility.admits(own));
        if hidden && audience == Audience::Caller {
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

impl Explanation {
    /// Formats the explanation for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let who = match &self.from.namespace {
            Some(namespace) => format!("a caller in namespace {namespace} ({})", self.from.reason),
            None => format!("a caller without a known namespace ({})", self.from.reason),
        };
        let _ = writeln!(text, "{} {}, for {who}\n", self.name, self.r#type);
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
            let _ = writeln!(text, "  followed by the records of the target, from upstreams");
        }
        if !self.near.is_empty() {
            let _ = writeln!(text, "\ndid you mean");
            for near in &self.near {
                let _ = writeln!(text, "  {near}");
            }
        }
        if let Some(server) = &self.server {
            let verdict = if server.differs { "answers differently" } else { "agrees" };
            let _ = writeln!(text, "\n{} {verdict}: {}", server.address, server.rcode);
            if server.differs {
                let _ = writeln!(text, "  (queried from this machine, whose namespace the server may not know)");
            }
            for answer in server.answers.iter().filter(|_| server.differs) {
                let _ = writeln!(text, "  {answer}");
            }
        }
        text
    }
}
