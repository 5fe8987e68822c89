//! Explains how a name resolves: the rules in order with their results, the outcome, and the answer.

use std::fmt::Write as _;
use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name as WireName, RecordType};
use serde::Serialize;
use thiserror::Error;

use super::near;
use crate::answer::{ForwardReason, Limit, Scratch, Verdict, answer};
use crate::resolve::{Node, Outcome, Recorded, Step, StepResult, resolve};
use crate::wire::{Name, NameError, name_from_text, text_of};
use crate::zone::{Caller, Kind, LazyCaller, NamespaceName, Origin, Zone};

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

/// What people paste in place of a name: a URL, a name with a port, or an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pasted {
    /// The name; of an address, its reverse name.
    pub name: String,
    /// The port: a number, as written or as the scheme implies.
    pub port: Option<u16>,
    /// Whether an address was pasted.
    pub is_address: bool,
}

impl Pasted {
    /// Takes the name and the port out of a text such as `http://api:3000/x`, `[fd00::1]:53` or `sab:8080`.
    pub fn parse(text: &str) -> Pasted {
        let (scheme, rest) = text.trim().split_once("://").map_or(("", text.trim()), |(scheme, rest)| (scheme, rest));
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default();
        let (name, port) = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
            Some((address, port)) => (address, port.strip_prefix(':')),
            // An IPv6 address without brackets has colons of its own.
            None if host.parse::<IpAddr>().is_ok() => (host, None),
            None => host.rsplit_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
        };
        let implied = match scheme.to_ascii_lowercase().as_str() {
            "http" | "ws" => Some(80),
            "https" | "wss" => Some(443),
            _ => None,
        };
        let port = port.and_then(|port| port.parse().ok()).or(implied);
        match name.parse::<IpAddr>() {
            Ok(address) => Pasted { name: reverse_name(address), port, is_address: true },
            Err(_) => Pasted { name: name.to_owned(), port, is_address: false },
        }
    }
}

/// Returns the name under which the name of an address is looked up (RFC 1035 section 3.5, RFC 3596 section 2.5).
fn reverse_name(address: IpAddr) -> String {
    let name: WireName = address.into();
    name.to_string().trim_end_matches('.').to_owned()
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
    /// What else there is to know: about the Service's endpoints, the port, or the record type.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Whether a note says that a connection would fail, although the name resolves.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub fails: bool,
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
    let found = resolve(&lazy_caller, name, &trace);
    let outcome = describe(&found);
    let is_port = matches!(found, Outcome::Found(Node::Port(..), _));
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
        Verdict::Reply { len, .. } => read(&reply[..len]).map(|(rcode, answers, _)| (rcode, answers))?,
        Verdict::Forward(_) | Verdict::Drop => (FORWARDED.to_owned(), Vec::new()),
    };
    let mut notes = Vec::new();
    if is_port && answers.is_empty() && rcode == "NOERROR" {
        notes.push("the name of a port has SRV records only; ask with -t SRV".to_owned());
    }
    let near = match rcode.as_str() {
        "NOERROR" => Vec::new(),
        _ => near(zone, who.namespace.as_ref(), name, audience, &mut notes),
    };
    Ok(Explanation {
        name: text_of(name.wire()),
        r#type: qtype.to_string(),
        from: From { namespace: who.namespace.as_ref().map(NamespaceName::text), reason: who.reason.clone() },
        steps: trace.into_steps().into_iter().map(|step| step_json(step, audience)).collect(),
        outcome,
        rcode,
        answers,
        leads_out: error == Some(ForwardReason::LeadsOut),
        notes,
        fails: false,
        near,
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

/// Parses a reply into its rcode, its answers, and whether the server answered from its own zone.
///
/// # Errors
/// If the reply cannot be parsed.
pub fn read(reply: &[u8]) -> Result<(String, Vec<String>, bool), ExplainError> {
    let message = Message::from_vec(reply).map_err(|error| ExplainError::Unreadable(error.to_string()))?;
    let rcode = format!("{:?}", message.metadata.response_code).to_uppercase();
    let answers = message
        .answers
        .iter()
        .map(|record| format!("{} {} {} {}", record.name, record.ttl, record.record_type(), record.data));
    Ok((rcode, answers.collect(), message.metadata.authoritative))
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

/// Returns similar names, as this caller would write them. If a Service of the very name exists, a note says why it has
/// no answer.
fn near(
    zone: &Zone,
    own: Option<&NamespaceName>,
    name: &Name,
    audience: Audience,
    notes: &mut Vec<String>,
) -> Vec<String> {
    let asked: Vec<String> = (0..name.labels()).map(|index| text_of(name.label(index))).collect();
    let domain = zone.settings.first_domain();
    let mut near: Vec<(usize, String)> = Vec::new();
    for service in zone.services() {
        let (label, namespace) = (text_of(service.name.service()), text_of(service.name.namespace()));
        let here = own.is_some_and(|own| own.label() == service.name.namespace());
        let (distance, write) = match asked.as_slice() {
            [] => continue,
            [first] => match near::distance(first, &label) {
                // The bare name of another namespace has to be complete there.
                Some(distance) if here => (distance * 2, label.clone()),
                Some(distance) => (distance * 2 + 1, format!("{label}.{namespace}")),
                None => continue,
            },
            [first, second, rest @ ..] => {
                let Some(of_label) = near::distance(first, &label) else { continue };
                let Some(of_namespace) = near::distance(second, &namespace).or((of_label == 0).then_some(4)) else {
                    continue;
                };
                let rest = rest.join(".");
                let forms = ["", "svc", &format!("svc.{domain}")].map(str::to_owned);
                let closest = near::closest(&rest, forms.iter().map(String::as_str).filter(|form| !form.is_empty()));
                let Some(form) = closest.or(rest.is_empty().then_some("")) else { continue };
                let dot = if form.is_empty() { "" } else { "." };
                (2 * (of_label + of_namespace), format!("{label}.{namespace}{dot}{form}"))
            }
        };
        let hidden = service.visibility.as_ref().is_some_and(|visibility| !visibility.admits(own));
        if hidden && audience == Audience::Caller {
            continue;
        }
        let note = match (hidden, service.answers()) {
            (true, _) => "exists, but is not visible to this caller",
            (_, false) if matches!(service.kind, Kind::ExternalName(_)) => {
                "is an ExternalName to an address or an invalid name; a CNAME needs a name"
            }
            (_, false) => "is headless, and has no ready endpoint",
            _ => "",
        };
        match (write == asked.join("."), note) {
            (true, "") => {}
            (true, note) => notes.push(format!("Service {label}.{namespace} {note}")),
            (false, "") => near.push((distance, write)),
            (false, note) => near.push((distance, format!("{write}; it {note}"))),
        }
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
        if !self.notes.is_empty() {
            text.push('\n');
        }
        for note in &self.notes {
            let _ = writeln!(text, "{note}");
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
