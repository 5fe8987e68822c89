//! Who listens while a name is resolved.

use crate::wire::{Name, text_of};
use crate::zone::{Kind, Service};

/// What a rule found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepResult {
    /// Nothing of that name.
    Nothing,
    /// This: the rule decides.
    Found(String),
    /// This, but the caller may not see it: for the caller it does not exist.
    Hidden(String),
    /// The rule does not apply, and why.
    Skipped(String),
}

/// One rule that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which rule.
    pub rule: &'static str,
    /// What it looked for.
    pub looked_for: String,
    /// What it found.
    pub finding: StepResult,
}

impl Step {
    /// A step from its parts.
    pub fn new(rule: &'static str, looked_for: String, finding: StepResult) -> Step {
        Step { rule, looked_for, finding }
    }

    pub(super) fn service(
        rule: &'static str,
        service: &[u8],
        namespace: &[u8],
        found: Option<&Service>,
        seen: bool,
    ) -> Step {
        let looked_for = format!("Service {} in namespace {}", text_of(service), text_of(namespace));
        Step { rule, looked_for, finding: finding(found, seen) }
    }

    pub(super) fn below(name: &Name, labels: usize, service: &Service, found: bool) -> Step {
        let (rule, what) = match labels {
            1 if name.label(0).get(1) == Some(&b'_') => ("protocol", "protocol"),
            1 => ("endpoint", "ready endpoint"),
            2 => ("port", "port"),
            _ => ("depth", "name"),
        };
        let looked_for = format!("{what} {} of Service {}", text_of(name.span(0, labels)), service.name.text());
        let finding = if found { StepResult::Found(describe(service)) } else { StepResult::Nothing };
        Step { rule, looked_for, finding }
    }
}

/// What was found, as far as the caller may see it.
pub(super) fn finding(found: Option<&Service>, seen: bool) -> StepResult {
    match found {
        None => StepResult::Nothing,
        Some(service) if seen => StepResult::Found(describe(service)),
        Some(service) => StepResult::Hidden(describe(service)),
    }
}

fn describe(service: &Service) -> String {
    let what = match &service.kind {
        Kind::Cluster(_) => "ClusterIP".to_owned(),
        Kind::Headless if service.endpoints.all.is_empty() => "headless, no ready endpoint".to_owned(),
        Kind::Headless => format!("headless, ready endpoints: {}", service.endpoints.all.len()),
        Kind::ExternalName(Some(target)) => format!("alias of {}", text_of(target)),
        Kind::ExternalName(None) => "ExternalName that is no name".to_owned(),
    };
    format!("{} ({what})", service.name.text())
}

/// Listens to the resolver. What it is told is made only if it wants it.
pub trait Trace {
    /// A rule was tried.
    #[inline(always)]
    fn note(&mut self, _step: impl FnOnce() -> Step) {}

    /// The table was asked for one key.
    #[inline(always)]
    fn probe(&mut self) {}
}

/// Wants nothing: the hot path's.
pub struct NoTrace;

impl Trace for NoTrace {}

/// Writes every step down.
#[derive(Debug, Default)]
pub struct Recorded(pub Vec<Step>);

impl Trace for Recorded {
    fn note(&mut self, step: impl FnOnce() -> Step) {
        self.0.push(step());
    }
}

/// Counts probes: what a lookup costs is a promise.
#[derive(Debug, Default)]
pub struct Probes(pub usize);

impl Trace for Probes {
    fn probe(&mut self) {
        self.0 += 1;
    }
}
