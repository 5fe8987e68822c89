//! Short names: `api`, `api.namespace`, `mysql-default`. The first rule that matches wins. A rule matches if its
//! Service exists: a headless Service without ready endpoints still ends the search.

use super::trace::{Step, StepResult, Trace, service_result};
use super::{EndpointMatch, Node, Outcome, Search, Space, has_named_port, protocol_of};
use crate::wire::{MAX_LABEL, text_of};
use crate::zone::{Candidate, Kind, Label, Namespace, NamespaceName, Row, Service, ServiceName, tld};

/// The result of the rules for a name.
enum RuleMatch<'z> {
    /// A rule matches.
    Found(Node<'z>),
    /// The name lies below a name of the cluster that has no such child: NXDOMAIN.
    Missing,
    /// No rule matches.
    Unmatched,
}

/// The result of the alias and database rules for a label.
enum AltNameMatch<'z> {
    Found(&'z Row),
    /// Several Services are marked as the default; choosing one of them would be a guess.
    Ambiguous,
    Unmatched,
}

impl<'z> RuleMatch<'z> {
    /// A Service ends the search, whether it has records or not.
    fn service(found: Option<&'z Row>) -> RuleMatch<'z> {
        match found {
            Some(service) if service.answers() => RuleMatch::Found(Node::Service(service)),
            Some(_) => RuleMatch::Missing,
            None => RuleMatch::Unmatched,
        }
    }
}

impl<'z, T: Trace> Search<'_, 'z, T> {
    /// Resolves a name outside of every cluster domain and reverse zone.
    #[inline(never)]
    pub(super) fn short_name(self) -> Outcome<'z> {
        let labels = self.name.labels();
        if self.last_label() == b"\x09localhost" {
            let result = || StepResult::Found("loopback (RFC 6761)".into());
            self.trace.note(|| Step::new("special use", "localhost".into(), result()));
            return Outcome::Found(Node::Localhost, Space::Short);
        }
        if !self.zone().synced && self.could_be_ours() {
            return Outcome::NotReady;
        }
        match self.rule_match() {
            RuleMatch::Found(node) => Outcome::Found(node, Space::Short),
            RuleMatch::Missing => Outcome::Missing(Space::Short),
            RuleMatch::Unmatched if labels == 0 => Outcome::NotOurs,
            RuleMatch::Unmatched if labels == 1 => self.unmatched_bare_name(),
            RuleMatch::Unmatched => self.unmatched_dotted_name(),
        }
    }

    /// Applies the rules for the number and kind of labels.
    fn rule_match(self) -> RuleMatch<'z> {
        let (zone, name) = (self.zone(), self.name);
        let at = |index| zone.label_of(name, index);
        let is_srv = self.is_srv();
        let is_svc = self.last_label() == b"\x03svc";
        match name.labels() {
            1 => RuleMatch::service(self.bare(at(0))),
            2 => {
                let (label, namespace) = (at(0), at(1));
                match self.own_endpoint(namespace) {
                    Some(node) => RuleMatch::Found(node),
                    None => match RuleMatch::service(self.dotted(label, namespace)) {
                        RuleMatch::Unmatched if self.is_own_headless(namespace) => RuleMatch::Missing,
                        found => found,
                    },
                }
            }
            3 if is_svc => match self.in_namespace(at(0), at(1)) {
                Some(service) => RuleMatch::service(Some(service)),
                None if is_srv => self.bare_srv(),
                None => self.endpoint_in_namespace(),
            },
            3 if is_srv => self.bare_srv(),
            3 => self.endpoint_in_namespace(),
            4 if is_svc && !is_srv => {
                let service = self.in_namespace(at(1), at(2));
                self.below_service(service, 1)
            }
            4 if is_srv => {
                let service = self.dotted(at(2), at(3));
                self.below_service(service, 2)
            }
            5 if is_svc && is_srv => {
                let service = self.in_namespace(at(2), at(3));
                self.below_service(service, 2)
            }
            _ => RuleMatch::Unmatched,
        }
    }

    /// Resolves the first `labels` labels of the name below the Service that the remaining labels denote.
    fn below_service(self, service: Option<&'z Row>, labels: usize) -> RuleMatch<'z> {
        match service {
            Some(service) => self.below(service, labels).map_or(RuleMatch::Missing, RuleMatch::Found),
            None => RuleMatch::Unmatched,
        }
    }

    /// `x`: a Service, alias or database of the caller's namespace; else an application.
    fn bare(self, label: Label<'_>) -> Option<&'z Row> {
        match self.caller.namespace() {
            Some(own) => {
                let own = own.as_label();
                if let Some(found) = self.service("service", label, own) {
                    return Some(found);
                }
                match self.alt_name(label, own) {
                    AltNameMatch::Found(service) => return Some(service),
                    AltNameMatch::Ambiguous => return None,
                    AltNameMatch::Unmatched => {}
                }
            }
            None => self.trace.note(|| {
                let looked_for = format!("Service, alias or database {}", text_of(label.octets));
                Step::new("service", looked_for, StepResult::Skipped("the caller's namespace is not known".into()))
            }),
        }
        if !self.may_use_applications() {
            self.trace.note(|| {
                let reason = "the caller is not in an app's namespace (--application-callers)".into();
                Step::new("application", format!("application {}", text_of(label.octets)), StepResult::Skipped(reason))
            });
            return None;
        }
        let application = self.application(label.octets)?;
        self.main_service(application)
    }

    /// Whether the bare names of applications resolve for the caller. By default they do not for callers in other
    /// namespaces. Otherwise, anyone who can create an application's namespace could claim a name that the caller's
    /// namespace lacks.
    fn may_use_applications(self) -> bool {
        let settings = &self.zone().settings;
        let is_application = |own: &NamespaceName| {
            own.label().get(1..).is_some_and(|label| label.starts_with(&settings.application_prefix))
        };
        settings.application_callers_all || self.caller.namespace().is_none_or(is_application)
    }

    /// `x.y`: a Service, alias or database `x` of namespace `y`, or Service `x` of application `y`. Endpoints of the
    /// caller's own Service `y` come before it.
    fn dotted(self, label: Label<'_>, namespace: Label<'_>) -> Option<&'z Row> {
        if self.is_guarded(namespace.octets) {
            self.trace.note(|| {
                let namespace = text_of(namespace.octets);
                let reason = format!("'{namespace}' is a top-level domain that no namespace may capture");
                Step::new("top-level domain", format!("namespace {namespace}"), StepResult::Skipped(reason))
            });
            return None;
        }
        if let Some(found) = self.in_namespace(label, namespace) {
            return Some(found);
        }
        // A namespace that is also a public top-level domain captures only the names of its Services.
        if self.lives_in(namespace.octets)
            || self.is_allowed_tld(namespace.octets)
            || !tld::is_public_label(namespace.octets)
        {
            match self.alt_name(label, namespace) {
                AltNameMatch::Found(service) => return Some(service),
                AltNameMatch::Ambiguous => return None,
                AltNameMatch::Unmatched => {}
            }
        }
        let application = self.application(namespace.octets)?;
        self.service_of_application(application, label.octets)
    }

    /// Service `x` of namespace `y`. Names that end in `svc` need no guard.
    fn in_namespace(self, label: Label<'_>, namespace: Label<'_>) -> Option<&'z Row> {
        self.service("service in namespace", label, namespace)
    }

    /// `_port._proto.x`: like the bare name `x`, its children are never forwarded.
    fn bare_srv(self) -> RuleMatch<'z> {
        let service = self.bare(self.zone().label_of(self.name, 2));
        match self.below_service(service, 2) {
            RuleMatch::Unmatched => RuleMatch::Missing,
            found => found,
        }
    }

    /// `h.x.y`: endpoint `h` of headless Service `x` in `y`; if `h` is a protocol, the parent of `_port._proto.x.y`.
    fn endpoint_in_namespace(self) -> RuleMatch<'z> {
        let (label, namespace) = (self.zone().label_of(self.name, 1), self.zone().label_of(self.name, 2));
        if self.is_guarded(namespace.octets) {
            return RuleMatch::Unmatched;
        }
        let Some(service) = self.in_namespace(label, namespace) else { return RuleMatch::Unmatched };
        self.below_headless(service).map_or(RuleMatch::Unmatched, RuleMatch::Found)
    }

    /// `x.y` where `y` is a headless Service of the caller's own namespace.
    fn own_endpoint(self, label: Label<'_>) -> Option<Node<'z>> {
        let own = self.caller.namespace()?.as_label();
        let service = self.service("endpoint", label, own)?;
        self.below_headless(service)
    }

    /// Whether a label is a headless Service of the caller's namespace. An endpoint of it that is not ready has a name
    /// of the cluster nevertheless, which must not leave it.
    fn is_own_headless(self, label: Label<'_>) -> bool {
        let own = self.caller.namespace().map(NamespaceName::as_label);
        let found = own.and_then(|own| self.zone().service(label, own));
        let is_headless = found.is_some_and(|service| matches!(service.kind, Kind::Headless));
        is_headless && !tld::is_public_label(label.octets)
    }

    /// Resolves the first label below a Service: a protocol or, if the Service is headless, an endpoint.
    fn below_headless(self, service: &'z Service) -> Option<Node<'z>> {
        let (name, label) = (self.name, self.name.label(0));
        if let Some(protocol) = protocol_of(label) {
            return has_named_port(service, protocol).then_some(Node::Empty);
        }
        match service.kind {
            Kind::Headless => {
                let found = EndpointMatch::new(service, label);
                self.trace.note(|| Step::below(name, 1, service, found.is_some()));
                found.map(Node::Endpoint)
            }
            _ => {
                self.trace.note(|| {
                    Step::new("endpoint", text_of(label), StepResult::Skipped("the Service is not headless".into()))
                });
                None
            }
        }
    }

    /// An alias in a namespace, or the default Service for a kind of database.
    fn alt_name(self, label: Label<'_>, namespace: Label<'_>) -> AltNameMatch<'z> {
        let (zone, caller) = (self.zone(), self.caller);
        self.trace.probe();
        let alt_name = zone.alt_name(label, namespace);
        let visible = |services: &'z [Row]| services.iter().filter(|service| caller.sees_service(service));
        let alias = alt_name.and_then(|alt_name| visible(&alt_name.aliases).next());
        self.trace.note(|| {
            let claim = alt_name.and_then(|alt_name| alt_name.aliases.first());
            let looked_for = format!("alias {} in namespace {}", text_of(label.octets), text_of(namespace.octets));
            Step::new("alias", looked_for, service_result(alias.or(claim), alias.is_some()))
        });
        if let Some(alias) = alias {
            return AltNameMatch::Found(alias);
        }
        let kinds = &zone.settings.database_kinds;
        if kinds.iter().any(|kind| **kind == *label.octets) {
            let mut defaults = alt_name.into_iter().flat_map(|alt_name| visible(&alt_name.defaults));
            let defaults = (defaults.next(), defaults.next());
            return self.database_default(label, namespace, defaults);
        }
        let kind = label.octets.get(1..).and_then(|text| text.strip_suffix(b"-default"));
        match kind.and_then(|kind| kinds.iter().find(|known| known.get(1..) == Some(kind))) {
            Some(kind) => self.database(zone.label(kind), namespace),
            None => AltNameMatch::Unmatched,
        }
    }

    /// The Service that is marked as the default for a kind of database, else the one named `<kind>-default`.
    fn database_default(
        &self,
        kind: Label<'_>,
        namespace: Label<'_>,
        defaults: (Option<&'z Row>, Option<&'z Row>),
    ) -> AltNameMatch<'z> {
        self.trace.note(|| {
            let result = match defaults {
                (Some(first), Some(second)) => {
                    let (first, second) = (first.name.text(), second.name.text());
                    StepResult::Skipped(format!("both {first} and {second} are marked: no answer"))
                }
                (only, _) => service_result(only, true),
            };
            let (kind, namespace) = (text_of(kind.octets), text_of(namespace.octets));
            Step::new("database", format!("Service {kind}-* marked callsign.dev/default in {namespace}"), result)
        });
        match defaults {
            (Some(_), Some(_)) => AltNameMatch::Ambiguous,
            (Some(only), None) => AltNameMatch::Found(only),
            (None, _) => {
                let marked = JoinedLabel::new(kind.octets.get(1..).unwrap_or(&[]), b"-default");
                match marked.as_ref().and_then(JoinedLabel::octets) {
                    Some(marked) => self.database(self.zone().label(marked), namespace),
                    None => AltNameMatch::Unmatched,
                }
            }
        }
    }

    fn database(self, label: Label<'_>, namespace: Label<'_>) -> AltNameMatch<'z> {
        self.service("database", label, namespace).map_or(AltNameMatch::Unmatched, AltNameMatch::Found)
    }

    /// The namespace of the application `name`, if the caller may see it.
    fn application(self, name: &[u8]) -> Option<&'z Namespace> {
        let caller = self.caller;
        let label = JoinedLabel::new(&self.zone().settings.application_prefix, name.get(1..)?)?;
        let label = label.octets()?;
        self.trace.probe();
        let found = self.zone().namespace(self.zone().label(label));
        self.trace.note(|| {
            let result = match found {
                Some(namespace) if caller.sees_namespace(namespace) => {
                    StepResult::Found(format!("namespace {}", namespace.name.text()))
                }
                Some(namespace) => StepResult::Hidden(format!("namespace {}", namespace.name.text())),
                None => StepResult::Nothing,
            };
            let looked_for = format!("application {} (namespace {})", text_of(name), text_of(label));
            Step::new("application", looked_for, result)
        });
        // A namespace that is hidden from the caller has no Service that the caller may see.
        found.filter(|namespace| !namespace.application.is_empty() && caller.sees_namespace(namespace))
    }

    /// The main Service of an application.
    fn main_service(self, application: &'z Namespace) -> Option<&'z Row> {
        let main = self.main_name(application)?;
        self.service("application", self.zone().label(main.service()), application.name.as_label())
    }

    /// Service `x` of an application: `<main>-x`, else `x` in its namespace.
    fn service_of_application(self, application: &'z Namespace, label: &[u8]) -> Option<&'z Row> {
        let namespace = application.name.as_label();
        if let Some(main) = self.main_name(application) {
            let suffix = JoinedLabel::new(b"-", label.get(1..)?);
            let suffix = suffix.as_ref().and_then(JoinedLabel::octets);
            let full = suffix.and_then(|suffix| JoinedLabel::new(main.service().get(1..)?, suffix.get(1..)?));
            let full = full.as_ref().and_then(JoinedLabel::octets);
            let found = full.and_then(|full| self.service("application", self.zone().label(full), namespace));
            if found.is_some() {
                return found;
            }
        }
        self.service("application", self.zone().label(label), namespace)
    }

    /// The name of an application's main Service, among those that the caller may see: the one that has the full name
    /// of its chart, else the one named like the application, else the one labelled as main, else the only one.
    fn main_name(self, application: &'z Namespace) -> Option<&'z ServiceName> {
        let caller = self.caller;
        let visible = || application.application.iter().filter(|candidate| caller.sees(&candidate.visibility));
        let only = |matches: &dyn Fn(&Candidate) -> bool| {
            let mut found = visible().filter(|candidate| matches(candidate));
            found.next().filter(|_| found.next().is_none())
        };
        let main = only(&|candidate| candidate.full_name)
            .or_else(|| only(&|candidate| candidate.full_name && candidate.main))
            .or_else(|| only(&|candidate| candidate.app_name))
            .or_else(|| only(&|candidate| candidate.main))
            .or_else(|| only(&|_| true));
        if main.is_none() && visible().next().is_some() {
            self.trace.note(|| {
                let looked_for = format!("main Service of {}", application.name.text());
                Step::new("application", looked_for, StepResult::Skipped("several, and none is the main one".into()))
            });
        }
        main.map(|candidate| &*candidate.name)
    }

    /// Whether the label is a top-level domain that no namespace may capture. This applies only while names outside the
    /// cluster are forwarded, and not to callers in a namespace of that name.
    fn is_guarded(self, namespace: &[u8]) -> bool {
        self.zone().settings.forwarding
            && matches!(
                namespace,
                b"\x03com" | b"\x03net" | b"\x03org" | b"\x03edu" | b"\x03gov" | b"\x03mil" | b"\x03int" | b"\x04arpa"
            )
            && !self.is_allowed_tld(namespace)
            && !self.lives_in(namespace)
    }

    fn lives_in(self, namespace: &[u8]) -> bool {
        self.caller.namespace().is_some_and(|own| own.label() == namespace)
    }

    fn is_allowed_tld(self, label: &[u8]) -> bool {
        self.zone().settings.allowed_tlds.iter().any(|allowed| **allowed == *label)
    }

    /// Whether a cluster domain lies below the name.
    fn is_above_a_domain(self) -> bool {
        self.zone().settings.domains.iter().any(|domain| domain.wire.ends_with(self.name.wire()))
    }

    /// A bare name that no rule matches. It exists if a namespace has this name, or if a cluster domain lies below it. It is
    /// never forwarded.
    fn unmatched_bare_name(self) -> Outcome<'z> {
        match self.namespace_node(self.zone().label_of(self.name, 0)) {
            Some(node) => Outcome::Found(node, Space::Short),
            None if self.is_above_a_domain() => Outcome::Found(Node::Empty, Space::Short),
            None => Outcome::Missing(Space::Short),
        }
    }

    /// A dotted name that no rule matches. It is answered here if it must not leave the cluster, else forwarded.
    fn unmatched_dotted_name(self) -> Outcome<'z> {
        let (name, last) = (self.name, self.last_label());
        let empty_or_missing = |is_empty| match is_empty {
            true => Outcome::Found(Node::Empty, Space::Short),
            false => Outcome::Missing(Space::Short),
        };
        // `ns.svc` has `x.ns.svc` below it.
        if last == b"\x03svc" {
            let is_between = name.labels() == 2 && self.namespace_node(self.zone().label_of(name, 0)).is_some();
            return empty_or_missing(is_between);
        }
        // A stub zone is forwarded because the operator has named a server for it.
        if self.zone().settings.is_stub(name) {
            let result = || StepResult::Skipped("served by another server".into());
            self.trace.note(|| Step::new("stub zone", text_of(name.wire()), result()));
            return Outcome::NotOurs;
        }
        // RFC 6761 sections 6.2 and 6.4, RFC 7686, RFC 6762 section 22.1 and RFC 9476.
        if matches!(last, b"\x07invalid" | b"\x05onion" | b"\x04test" | b"\x05local" | b"\x03alt") {
            let result = || StepResult::Skipped("must not leave the cluster".into());
            self.trace.note(|| Step::new("special use", text_of(last), result()));
            return empty_or_missing(self.is_above_a_domain());
        }
        if !tld::is_public_label(last) && self.namespace_node(self.zone().label(last)).is_some() {
            return Outcome::Missing(Space::Short);
        }
        let result = || StepResult::Skipped("not a name of the cluster".into());
        self.trace.note(|| Step::new("outside", text_of(name.wire()), result()));
        Outcome::NotOurs
    }

    /// Before the first sync: whether some rule could match once the cluster is known.
    fn could_be_ours(self) -> bool {
        let (labels, last) = (self.name.labels(), self.last_label());
        let (is_srv, is_svc) = (self.is_srv(), last == b"\x03svc");
        let has_rule = match labels {
            0 => false,
            1..=3 => true,
            4 => is_srv || is_svc,
            _ => is_srv && is_svc && labels == 5,
        };
        has_rule && (labels == 1 || is_svc || !self.is_guarded(last))
    }

    /// Whether the name starts with `_port._proto`.
    fn is_srv(self) -> bool {
        let is_underscored = |label: &[u8]| label.get(1) == Some(&b'_');
        is_underscored(self.name.label(0)) && is_underscored(self.name.label(1))
    }

    fn last_label(self) -> &'z [u8] {
        self.name.label(self.name.labels().wrapping_sub(1))
    }
}

/// Two pieces of text as one label, on the stack.
struct JoinedLabel {
    octets: [u8; 1 + MAX_LABEL],
    len: usize,
}

impl JoinedLabel {
    /// Joins two pieces; `None` if the label would be too long.
    fn new(first: &[u8], second: &[u8]) -> Option<JoinedLabel> {
        let len = first.len() + second.len();
        let mut octets = [0; 1 + MAX_LABEL];
        octets.get_mut(1..=first.len())?.copy_from_slice(first);
        octets.get_mut(1 + first.len()..=len)?.copy_from_slice(second);
        *octets.first_mut()? = len as u8;
        Some(JoinedLabel { octets, len: len + 1 })
    }

    /// The label with its length octet.
    fn octets(&self) -> Option<&[u8]> {
        self.octets.get(..self.len)
    }
}
