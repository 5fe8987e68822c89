//! Traces of a resolution: the rules that were tried, and the result of each.

use std::cell::{Cell, RefCell};

use crate::wire::{Name, text_of};
use crate::zone::{Kind, Row, Service};

/// The result of one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepResult {
    /// Nothing has that name.
    Nothing,
    /// The rule matched and decides the outcome.
    Found(String),
    /// Something has that name, but it is not visible to the caller.
    Hidden(String),
    /// The rule does not apply, for this reason.
    Skipped(String),
}

/// One rule that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Name of the rule.
    pub rule: &'static str,
    /// The object or name that the rule looked for.
    pub looked_for: String,
    /// Its result.
    pub result: StepResult,
}

impl Step {
    /// Creates a step.
    pub fn new(rule: &'static str, looked_for: String, result: StepResult) -> Step {
        Step { rule, looked_for, result }
    }

    pub(super) fn service(
        rule: &'static str,
        service: &[u8],
        namespace: &[u8],
        found: Option<&Row>,
        seen: bool,
    ) -> Step {
        let looked_for = format!("Service {} in namespace {}", text_of(service), text_of(namespace));
        Step { rule, looked_for, result: service_result(found, seen) }
    }

    pub(super) fn below(name: &Name, labels: usize, service: &Service, found: bool) -> Step {
        let (rule, what) = match labels {
            1 if name.label(0).get(1) == Some(&b'_') => ("protocol", "protocol"),
            1 => ("endpoint", "ready endpoint"),
            2 => ("port", "port"),
            _ => ("depth", "name"),
        };
        let looked_for = format!("{what} {} of Service {}", text_of(name.span(0, labels)), service.name.text());
        let result = if found { StepResult::Found(describe(service)) } else { StepResult::Nothing };
        Step { rule, looked_for, result }
    }
}

/// Returns the result for a Service, depending on its visibility to the caller.
pub(super) fn service_result(found: Option<&Row>, seen: bool) -> StepResult {
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
        Kind::ExternalName(Some(target)) => format!("ExternalName, target: {}", text_of(target)),
        Kind::ExternalName(None) => "ExternalName, not a valid name".to_owned(),
    };
    format!("{} ({what})", service.name.text())
}

/// Receives the steps of a resolution. Steps are passed as closures, so that an unused trace costs nothing.
pub trait Trace: Copy {
    /// Called for each rule that was tried.
    #[inline(always)]
    fn note(&self, _step: impl FnOnce() -> Step) {}

    /// Called for each lookup of a key in the table.
    #[inline(always)]
    fn probe(&self) {}
}

/// Ignores all steps; used on the hot path.
#[derive(Clone, Copy)]
pub struct NoTrace;

impl Trace for NoTrace {}

/// Records all steps.
#[derive(Debug, Default)]
pub struct Recorded(RefCell<Vec<Step>>);

impl Recorded {
    /// Returns the steps in order.
    pub fn into_steps(self) -> Vec<Step> {
        self.0.into_inner()
    }
}

impl Trace for &Recorded {
    fn note(&self, step: impl FnOnce() -> Step) {
        let step = step();
        self.0.borrow_mut().push(step);
    }
}

/// Counts probes; tests use it to bound the cost of a lookup.
#[derive(Debug, Default)]
pub struct Probes(Cell<usize>);

impl Probes {
    /// Returns the number of probes so far.
    pub fn count(&self) -> usize {
        self.0.get()
    }
}

impl Trace for &Probes {
    fn probe(&self) {
        self.0.set(self.0.get() + 1);
    }
}
