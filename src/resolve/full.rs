//! Full names under a cluster domain: Kubernetes DNS-Based Service Discovery 1.1.0. Apart from visibility, they do not
//! depend on the caller's namespace. They never fall through to the rules for short names.

use super::trace::{Step, StepResult, Trace};
use super::{Node, Outcome, Search, Space};
use crate::wire::{Name, text_of};
use crate::zone::{Label, PodNames, dashed};

/// Resolves a name that has `above` labels before the cluster domain.
#[inline(always)]
pub(super) fn resolve<'z, T: Trace>(
    search: &Search<'_, 'z>,
    name: &'z Name,
    space: Space,
    above: usize,
    trace: &mut T,
) -> Outcome<'z> {
    if !search.zone.synced {
        return Outcome::NotReady;
    }
    let Some(kind) = above.checked_sub(1) else { return Outcome::Found(Node::Apex, space) };
    let label = name.label(kind);
    if label == b"\x03svc" {
        return service(search, name, space, kind, trace);
    }
    let node = match label {
        b"\x03pod" => pod(search, name, kind, trace),
        b"\x0bdns-version" if kind == 0 => Some(Node::Version),
        b"\x03dns" if kind == 0 => Some(Node::Empty),
        b"\x03dns" if kind == 1 && name.label(0) == b"\x02ns" => Some(Node::NameServer),
        other => {
            trace.note(|| Step::new("full name", format!("svc or pod, not '{}'", text_of(other)), StepResult::Nothing));
            None
        }
    };
    outcome(node, space)
}

fn outcome(node: Option<Node<'_>>, space: Space) -> Outcome<'_> {
    match node {
        Some(node) => Outcome::Found(node, space),
        None => Outcome::Missing(space),
    }
}

/// Resolves a name that has `kind` labels before `svc.Z`.
#[inline(always)]
fn service<'z, T: Trace>(
    search: &Search<'_, 'z>,
    name: &'z Name,
    space: Space,
    kind: usize,
    trace: &mut T,
) -> Outcome<'z> {
    let Some(namespace) = kind.checked_sub(1) else { return Outcome::Found(Node::Empty, space) };
    let Some(service) = namespace.checked_sub(1) else {
        return outcome(namespace_node(search, search.zone.label_of(name, 0), trace), space);
    };
    let (label, within) = (search.zone.label_of(name, service), search.zone.label_of(name, namespace));
    match search.service("full name", label, within, trace) {
        Some(found) if !found.answers() => Outcome::Missing(space),
        Some(found) if service == 0 => Outcome::Found(Node::Service(found), space),
        Some(found) => outcome(search.below(found, name, service, trace), space),
        None => Outcome::Missing(space),
    }
}

/// Resolves the name of a namespace, which exists but has no records.
pub(super) fn namespace_node<'z, T: Trace>(
    search: &Search<'_, 'z>,
    label: Label<'_>,
    trace: &mut T,
) -> Option<Node<'z>> {
    trace.probe();
    let found = search.zone.namespace(label).filter(|namespace| search.lazy_caller.sees_namespace(namespace));
    trace.note(|| {
        let finding = match found {
            Some(_) => StepResult::Found("the namespace exists, but has no address".to_owned()),
            None => StepResult::Nothing,
        };
        Step::new("namespace", format!("namespace {}", text_of(label.octets)), finding)
    });
    found.map(|_| Node::Empty)
}

/// Resolves `a-b-c-d.ns.pod.Z`, which has `kind` labels before `pod.Z`.
fn pod<'z, T: Trace>(search: &Search<'_, 'z>, name: &'z Name, kind: usize, trace: &mut T) -> Option<Node<'z>> {
    match kind {
        0 => Some(Node::Empty),
        1 => namespace_node(search, search.zone.label_of(name, 0), trace),
        2 => {
            let namespace = name.label(1);
            namespace_node(search, search.zone.label(namespace), trace)?;
            let address = dashed::parse(name.label(0))?;
            let exists = match search.zone.settings.pod_names {
                PodNames::Off => false,
                PodNames::Any => true,
                PodNames::Verified => search.zone.has_pod(address, namespace),
            };
            exists.then_some(Node::Address(address))
        }
        _ => None,
    }
}
