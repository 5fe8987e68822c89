//! Full names under a cluster domain: Kubernetes DNS-Based Service Discovery 1.1.0. Apart from visibility, they do not
//! depend on the caller's namespace. They never fall through to the rules for short names.

use super::trace::{Step, StepResult, Trace};
use super::{Node, Outcome, Search, Space};
use crate::wire::text_of;
use crate::zone::{Label, PodNames, dashed};

fn outcome(node: Option<Node<'_>>, space: Space) -> Outcome<'_> {
    match node {
        Some(node) => Outcome::Found(node, space),
        None => Outcome::Missing(space),
    }
}

impl<'z, T: Trace> Search<'_, 'z, T> {
    /// Resolves a name that has `above` labels before the cluster domain.
    #[inline(always)]
    pub(super) fn full_name(self, space: Space, above: usize) -> Outcome<'z> {
        if !self.zone().synced {
            return Outcome::NotReady;
        }
        let Some(kind) = above.checked_sub(1) else { return self.unless_foreign(None, Some(Node::Apex), space) };
        let label = self.name.label(kind);
        if label == b"\x03svc" {
            return self.service_name(space, kind);
        }
        let node = match label {
            b"\x03pod" => self.pod_name(kind),
            b"\x0bdns-version" if kind == 0 => Some(Node::Version),
            b"\x03dns" if kind == 0 => Some(Node::Empty),
            b"\x03dns" if kind == 1 && self.name.label(0) == b"\x02ns" => Some(Node::NameServer),
            other => {
                let looked_for = || format!("svc or pod, not '{}'", text_of(other));
                self.trace.note(|| Step::new("full name", looked_for(), StepResult::Nothing));
                None
            }
        };
        self.unless_foreign(None, node, space)
    }

    /// Resolves a name that has `kind` labels before `svc.Z`.
    #[inline(always)]
    fn service_name(self, space: Space, kind: usize) -> Outcome<'z> {
        let Some(namespace) = kind.checked_sub(1) else { return self.unless_foreign(None, Some(Node::Empty), space) };
        let Some(service) = namespace.checked_sub(1) else {
            let label = self.zone().label_of(self.name, 0);
            return self.unless_foreign(Some(label), self.namespace_node(label), space);
        };
        let (label, within) = (self.zone().label_of(self.name, service), self.zone().label_of(self.name, namespace));
        match self.service("full name", label, within) {
            Some(found) if !found.answers() => Outcome::Missing(space),
            Some(found) if service == 0 => Outcome::Found(Node::Service(found), space),
            Some(found) => outcome(self.below(found, service), space),
            None => self.unless_foreign(Some(within), None, space),
        }
    }

    /// Returns the outcome for a name that belongs to no Service in the table. With `--watch-namespace`, only names in
    /// that namespace are known not to exist; the upstreams answer for all others.
    #[inline(never)]
    fn unless_foreign(self, namespace: Option<Label<'_>>, node: Option<Node<'z>>, space: Space) -> Outcome<'z> {
        let watched = self.zone().settings.watched.as_ref();
        if watched.is_some_and(|own| namespace.is_none_or(|label| own.label() != label.octets)) {
            let looked_for = || "the watched namespace (--watch-namespace)".to_owned();
            self.trace.note(|| Step::new("full name", looked_for(), StepResult::Nothing));
            return Outcome::NotOurs;
        }
        outcome(node, space)
    }

    /// Resolves the name of a namespace, which exists but has no records.
    pub(super) fn namespace_node(self, label: Label<'_>) -> Option<Node<'z>> {
        self.trace.probe();
        let found = self.zone().namespace(label).filter(|namespace| self.caller.sees_namespace(namespace));
        self.trace.note(|| {
            let result = match found {
                Some(_) => StepResult::Found("the namespace exists, but has no address".to_owned()),
                None => StepResult::Nothing,
            };
            Step::new("namespace", format!("namespace {}", text_of(label.octets)), result)
        });
        found.map(|_| Node::Empty)
    }

    /// Resolves `a-b-c-d.ns.pod.Z`, which has `kind` labels before `pod.Z`.
    fn pod_name(self, kind: usize) -> Option<Node<'z>> {
        match kind {
            0 => Some(Node::Empty),
            1 => self.namespace_node(self.zone().label_of(self.name, 0)),
            2 => {
                let namespace = self.name.label(1);
                self.namespace_node(self.zone().label(namespace))?;
                let address = dashed::parse(self.name.label(0))?;
                let exists = match self.zone().settings.pod_names {
                    PodNames::Off => false,
                    PodNames::Any => true,
                    PodNames::Verified => self.zone().has_pod(address, namespace),
                };
                exists.then_some(Node::Address(address))
            }
            _ => None,
        }
    }
}
