//! Short names: `api`, `api.namespace`, `mysql-default`. The first rule that matches wins, and a match is decided by
//! existence: a headless Service without ready endpoints still ends the search.

use super::full::namespace_node;
use super::trace::{Step, StepResult, Trace, finding};
use super::{EndpointMatch, Node, Outcome, Search, Space, has_named_port, protocol_of};
use crate::wire::{MAX_LABEL, Name, text_of};
use crate::zone::{Kind, Label, Namespace, Service, tld};

/// Resolves a name outside of every cluster domain and reverse zone.
#[inline(never)]
pub(super) fn resolve<'z, T: Trace>(search: &Search<'_, 'z>, name: &'z Name, trace: &mut T) -> Outcome<'z> {
    let labels = name.labels();
    let last = name.label(labels.wrapping_sub(1));
    if last == b"\x09localhost" {
        trace.note(|| Step::new("special use", "localhost".into(), StepResult::Found("loopback (RFC 6761)".into())));
        return Outcome::Found(Node::Localhost, Space::Short);
    }
    if !search.zone.synced && could_be_ours(search, name) {
        return Outcome::NotReady;
    }
    match named(search, name, trace) {
        RuleMatch::Is(node) => Outcome::Found(node, Space::Short),
        RuleMatch::Not => Outcome::Missing(Space::Short),
        RuleMatch::Unknown if labels == 0 => Outcome::NotOurs,
        RuleMatch::Unknown if labels == 1 => bare_end(search, name, trace),
        RuleMatch::Unknown => dotted_end(search, name, last, trace),
    }
}

/// What the rules say of a name.
enum RuleMatch<'z> {
    /// It is this.
    Is(Node<'z>),
    /// It lies below something that is ours, which has no such name: NXDOMAIN.
    Not,
    /// No rule matches.
    Unknown,
}

impl<'z> RuleMatch<'z> {
    /// A Service ends the search, whether it has an address or not.
    fn service(found: Option<&'z Service>) -> RuleMatch<'z> {
        match found {
            Some(service) if service.answers() => RuleMatch::Is(Node::Service(service)),
            Some(_) => RuleMatch::Not,
            None => RuleMatch::Unknown,
        }
    }

    /// What lies below a Service that a shorter name led to.
    fn below<T: Trace>(
        search: &Search<'_, 'z>,
        found: Option<&'z Service>,
        name: &'z Name,
        labels: usize,
        trace: &mut T,
    ) -> RuleMatch<'z> {
        match found {
            Some(service) => search.below(service, name, labels, trace).map_or(RuleMatch::Not, RuleMatch::Is),
            None => RuleMatch::Unknown,
        }
    }
}

/// The table of rules, by the number and kind of labels.
fn named<'z, T: Trace>(search: &Search<'_, 'z>, name: &'z Name, trace: &mut T) -> RuleMatch<'z> {
    let srv = is_underscored(name.label(0)) && is_underscored(name.label(1));
    let svc = name.label(name.labels().wrapping_sub(1)) == b"\x03svc";
    let at = |index| search.zone.label_of(name, index);
    match name.labels() {
        1 => RuleMatch::service(one(search, at(0), trace)),
        2 => {
            let (label, place) = (at(0), at(1));
            match endpoint_of_own(search, name, place, trace) {
                Some(node) => RuleMatch::Is(node),
                None => RuleMatch::service(two(search, label, place, trace)),
            }
        }
        3 if svc => match in_namespace(search, at(0), at(1), trace) {
            Some(service) => RuleMatch::service(Some(service)),
            None if srv => srv_of_one(search, name, trace),
            None => endpoint_in(search, name, trace),
        },
        3 if srv => srv_of_one(search, name, trace),
        3 => endpoint_in(search, name, trace),
        4 if svc && !srv => RuleMatch::below(search, in_namespace(search, at(1), at(2), trace), name, 1, trace),
        4 if srv => RuleMatch::below(search, two(search, at(2), at(3), trace), name, 2, trace),
        5 if svc && srv => RuleMatch::below(search, in_namespace(search, at(2), at(3), trace), name, 2, trace),
        _ => RuleMatch::Unknown,
    }
}

fn is_underscored(label: &[u8]) -> bool {
    label.get(1) == Some(&b'_')
}

/// `x`: in the caller's namespace a Service, an alias, a database; else an application.
fn one<'z, T: Trace>(search: &Search<'_, 'z>, label: Label<'_>, trace: &mut T) -> Option<&'z Service> {
    match search.lazy_caller.namespace() {
        Some(own) => {
            let own = own.as_label();
            if let Some(found) = search.service("service", label, own, trace) {
                return Some(found);
            }
            match alt_name(search, label, own, trace) {
                Nick::Is(service) => return Some(service),
                Nick::Doubtful => return None,
                Nick::Unknown => {}
            }
        }
        None => trace.note(|| {
            let looked_for = format!("Service, alias or database {}", text_of(label.octets));
            Step::new("service", looked_for, StepResult::Skipped("the caller's namespace is not known".into()))
        }),
    }
    main_of(search, application(search, label.octets, trace)?, trace)
}

/// `x.y`: after the endpoints of the caller's own Service `y`, a Service, alias or database `x` of namespace `y`, or
/// Service `x` of application `y`.
fn two<'z, T: Trace>(
    search: &Search<'_, 'z>,
    label: Label<'_>,
    place: Label<'_>,
    trace: &mut T,
) -> Option<&'z Service> {
    if guarded(search, place.octets) {
        trace.note(|| {
            let place = text_of(place.octets);
            let error = format!("'{place}' is a top-level domain that no namespace may capture");
            Step::new("top-level domain", format!("namespace {place}"), StepResult::Skipped(error))
        });
        return None;
    }
    if let Some(found) = search.service("service in namespace", label, place, trace) {
        return Some(found);
    }
    // A namespace that is also a public top-level domain captures only what its Services are called.
    if lives_in(search, place.octets) || allowed(search, place.octets) || !tld::is_public_label(place.octets) {
        match alt_name(search, label, place, trace) {
            Nick::Is(service) => return Some(service),
            Nick::Doubtful => return None,
            Nick::Unknown => {}
        }
    }
    part_of(search, application(search, place.octets, trace)?, label.octets, trace)
}

/// Service `x` of namespace `y`, for names that say `svc` and so need no guard.
fn in_namespace<'z, T: Trace>(
    search: &Search<'_, 'z>,
    label: Label<'_>,
    place: Label<'_>,
    trace: &mut T,
) -> Option<&'z Service> {
    search.service("service in namespace", label, place, trace)
}

/// `_port._proto.x`: a bare name's child is as little anybody else's as the bare name itself.
fn srv_of_one<'z, T: Trace>(search: &Search<'_, 'z>, name: &'z Name, trace: &mut T) -> RuleMatch<'z> {
    match RuleMatch::below(search, one(search, search.zone.label_of(name, 2), trace), name, 2, trace) {
        RuleMatch::Unknown => RuleMatch::Not,
        found => found,
    }
}

/// `h.x.y`: endpoint `h` of headless Service `x` in `y`; a protocol in place of `h` is the name above `_port._proto.x.y`.
fn endpoint_in<'z, T: Trace>(search: &Search<'_, 'z>, name: &'z Name, trace: &mut T) -> RuleMatch<'z> {
    let (label, place) = (search.zone.label_of(name, 1), search.zone.label_of(name, 2));
    if guarded(search, place.octets) {
        return RuleMatch::Unknown;
    }
    let Some(service) = in_namespace(search, label, place, trace) else { return RuleMatch::Unknown };
    match below_headless(service, name, trace) {
        Some(node) => RuleMatch::Is(node),
        None => RuleMatch::Unknown,
    }
}

/// `x.y` where `y` is a headless Service of the caller's own namespace.
fn endpoint_of_own<'z, T: Trace>(
    search: &Search<'_, 'z>,
    name: &'z Name,
    label: Label<'_>,
    trace: &mut T,
) -> Option<Node<'z>> {
    let own = search.lazy_caller.namespace()?.as_label();
    below_headless(search.service("endpoint", label, own, trace)?, name, trace)
}

fn below_headless<'z, T: Trace>(service: &'z Service, name: &'z Name, trace: &mut T) -> Option<Node<'z>> {
    if let Some(protocol) = protocol_of(name.label(0)) {
        return has_named_port(service, protocol).then_some(Node::Empty);
    }
    match service.kind {
        Kind::Headless => {
            let found = EndpointMatch::new(service, name.label(0));
            trace.note(|| Step::below(name, 1, service, found.is_some()));
            found.map(Node::Endpoint)
        }
        _ => {
            trace.note(|| {
                Step::new("endpoint", text_of(name.label(0)), StepResult::Skipped("the Service is not headless".into()))
            });
            None
        }
    }
}

/// What an alias or the database rule says.
enum Nick<'z> {
    Is(&'z Service),
    /// Two defaults: no answer is better than either.
    Doubtful,
    Unknown,
}

fn alt_name<'z, T: Trace>(search: &Search<'_, 'z>, label: Label<'_>, within: Label<'_>, trace: &mut T) -> Nick<'z> {
    let zone = search.zone;
    trace.probe();
    let alt_name = zone.alt_name(label, within);
    let seen = |services: &'z [std::sync::Arc<Service>]| {
        services.iter().map(|service| &**service).filter(|service| search.lazy_caller.sees(&service.visibility))
    };
    let alias = alt_name.and_then(|alt_name| seen(&alt_name.aliases).next());
    trace.note(|| {
        let claims = alt_name.and_then(|alt_name| alt_name.aliases.first()).map(|service| &**service);
        let looked_for = format!("alias {} in namespace {}", text_of(label.octets), text_of(within.octets));
        Step::new("alias", looked_for, finding(alias.or(claims), alias.is_some()))
    });
    if let Some(alias) = alias {
        return Nick::Is(alias);
    }
    let kinds = &zone.settings.database_kinds;
    if kinds.iter().any(|kind| **kind == *label.octets) {
        let mut defaults = alt_name.into_iter().flat_map(|alt_name| seen(&alt_name.defaults));
        let (first, second) = (defaults.next(), defaults.next());
        trace.note(|| {
            let finding = match (first, second) {
                (Some(first), Some(second)) => StepResult::Skipped(format!(
                    "both {} and {} are marked: no answer",
                    first.name.text(),
                    second.name.text()
                )),
                _ => finding(first, true),
            };
            let looked_for = format!(
                "Service {}-* marked callsign.dev/default in {}",
                text_of(label.octets),
                text_of(within.octets)
            );
            Step::new("database", looked_for, finding)
        });
        return match (first, second) {
            (Some(_), Some(_)) => Nick::Doubtful,
            (Some(only), None) => Nick::Is(only),
            (None, _) => {
                let marked = joined(label.octets.get(1..).unwrap_or(&[]), b"-default");
                let marked = marked.as_ref().and_then(Joined::label).map(|label| zone.label(label));
                marked
                    .and_then(|label| search.service("database", label, within, trace))
                    .map_or(Nick::Unknown, Nick::Is)
            }
        };
    }
    let kind = label.octets.get(1..).and_then(|text| text.strip_suffix(b"-default"));
    if let Some(kind) = kind.and_then(|kind| kinds.iter().find(|known| known.get(1..) == Some(kind))) {
        return search.service("database", zone.label(kind), within, trace).map_or(Nick::Unknown, Nick::Is);
    }
    Nick::Unknown
}

/// Two pieces of text as one label, on the stack.
struct Joined {
    octets: [u8; 1 + MAX_LABEL],
    len: usize,
}

impl Joined {
    fn label(&self) -> Option<&[u8]> {
        self.octets.get(..self.len)
    }
}

fn joined(first: &[u8], second: &[u8]) -> Option<Joined> {
    let len = first.len() + second.len();
    let mut octets = [0; 1 + MAX_LABEL];
    octets.get_mut(1..=first.len())?.copy_from_slice(first);
    octets.get_mut(1 + first.len()..=len)?.copy_from_slice(second);
    *octets.first_mut()? = len as u8;
    Some(Joined { octets, len: len + 1 })
}

/// The namespace of application `name`.
fn application<'z, T: Trace>(search: &Search<'_, 'z>, name: &[u8], trace: &mut T) -> Option<&'z Namespace> {
    let prefix = &search.zone.settings.application_prefix;
    let label = joined(prefix, name.get(1..)?)?;
    trace.probe();
    let found = search.zone.namespace(search.zone.label(label.label()?));
    trace.note(|| {
        let finding = match found {
            Some(namespace) if search.lazy_caller.sees_namespace(namespace) => {
                StepResult::Found(format!("namespace {}", namespace.name.text()))
            }
            Some(namespace) => StepResult::Hidden(format!("namespace {}", namespace.name.text())),
            None => StepResult::Nothing,
        };
        Step::new(
            "application",
            format!("application {} (namespace {})", text_of(name), text_of(label.label().unwrap_or(&[]))),
            finding,
        )
    });
    // In a namespace that the caller may not see, there is no Service that it may.
    found.filter(|namespace| !namespace.application.is_empty() && search.lazy_caller.sees_namespace(namespace))
}

/// The main Service of an application, of those that the caller may see: the one whose name is the full name of its
/// chart, else the one called as the application, else the one labelled main, else the only one.
fn main_candidate<'z, T: Trace>(
    search: &Search<'_, 'z>,
    application: &'z Namespace,
    trace: &mut T,
) -> Option<&'z crate::zone::ServiceName> {
    let seen = || application.application.iter().filter(|candidate| search.lazy_caller.sees(&candidate.visibility));
    let only = |wanted: &dyn Fn(&crate::zone::Candidate) -> bool| {
        let mut found = seen().filter(|candidate| wanted(candidate));
        found.next().filter(|_| found.next().is_none())
    };
    let main = only(&|candidate| candidate.full_name)
        .or_else(|| only(&|candidate| candidate.full_name && candidate.main))
        .or_else(|| only(&|candidate| candidate.app_name))
        .or_else(|| only(&|candidate| candidate.main))
        .or_else(|| only(&|_| true));
    if main.is_none() && seen().next().is_some() {
        trace.note(|| {
            let looked_for = format!("main Service of {}", application.name.text());
            Step::new("application", looked_for, StepResult::Skipped("several, and none is the main one".into()))
        });
    }
    main.map(|candidate| &*candidate.name)
}

fn main_of<'z, T: Trace>(search: &Search<'_, 'z>, application: &'z Namespace, trace: &mut T) -> Option<&'z Service> {
    let main = main_candidate(search, application, trace)?;
    search.service("application", search.zone.label(main.service()), application.name.as_label(), trace)
}

/// Service `x` of an application: `<main>-x`, else `x` in its namespace.
fn part_of<'z, T: Trace>(
    search: &Search<'_, 'z>,
    application: &'z Namespace,
    label: &[u8],
    trace: &mut T,
) -> Option<&'z Service> {
    let within = application.name.as_label();
    if let Some(main) = main_candidate(search, application, trace) {
        let dashed = joined(b"-", label.get(1..)?);
        let full =
            dashed.as_ref().and_then(Joined::label).and_then(|part| joined(main.service().get(1..)?, part.get(1..)?));
        let full = full.as_ref().and_then(Joined::label);
        let found = full.and_then(|full| search.service("application", search.zone.label(full), within, trace));
        if found.is_some() {
            return found;
        }
    }
    search.service("application", search.zone.label(label), within, trace)
}

/// Top-level domains that no namespace captures while names outside the cluster are forwarded, but for who lives there.
fn guarded(search: &Search<'_, '_>, place: &[u8]) -> bool {
    search.zone.settings.forwarding
        && matches!(
            place,
            b"\x03com" | b"\x03net" | b"\x03org" | b"\x03edu" | b"\x03gov" | b"\x03mil" | b"\x03int" | b"\x04arpa"
        )
        && !allowed(search, place)
        && !lives_in(search, place)
}

fn lives_in(search: &Search<'_, '_>, place: &[u8]) -> bool {
    search.lazy_caller.namespace().is_some_and(|own| own.label() == place)
}

fn allowed(search: &Search<'_, '_>, place: &[u8]) -> bool {
    search.zone.settings.allowed_tlds.iter().any(|label| **label == *place)
}

/// A bare name that no rule knows: a namespace of that name makes it exist, and so does a cluster domain below it.
/// It is never forwarded.
fn bare_end<'z, T: Trace>(search: &Search<'_, 'z>, name: &'z Name, trace: &mut T) -> Outcome<'z> {
    let above_domain = || search.zone.settings.domains.iter().any(|domain| domain.wire.ends_with(name.wire()));
    match namespace_node(search, search.zone.label_of(name, 0), trace) {
        Some(node) => Outcome::Found(node, Space::Short),
        None if above_domain() => Outcome::Found(Node::Empty, Space::Short),
        None => Outcome::Missing(Space::Short),
    }
}

/// A dotted name that no rule knows: kept here if it must not leave, else somebody else's.
fn dotted_end<'z, T: Trace>(search: &Search<'_, 'z>, name: &'z Name, last: &[u8], trace: &mut T) -> Outcome<'z> {
    // `ns.svc` has `x.ns.svc` below it.
    if last == b"\x03svc" {
        let between = name.labels() == 2 && namespace_node(search, search.zone.label_of(name, 0), trace).is_some();
        return if between { Outcome::Found(Node::Empty, Space::Short) } else { Outcome::Missing(Space::Short) };
    }
    // Who names a server for a zone means it.
    if search.zone.settings.is_stub(name) {
        trace.note(|| Step::new("stub zone", text_of(name.wire()), StepResult::Skipped("another server's".into())));
        return Outcome::NotOurs;
    }
    // RFC 6761 sections 6.2 and 6.4, RFC 7686 and RFC 6762 section 22.1.
    if matches!(last, b"\x07invalid" | b"\x05onion" | b"\x04test" | b"\x05local") {
        let above_domain = || search.zone.settings.domains.iter().any(|domain| domain.wire.ends_with(name.wire()));
        trace
            .note(|| Step::new("special use", text_of(last), StepResult::Skipped("must not leave the cluster".into())));
        return if above_domain() { Outcome::Found(Node::Empty, Space::Short) } else { Outcome::Missing(Space::Short) };
    }
    if !tld::is_public_label(last) && namespace_node(search, search.zone.label(last), trace).is_some() {
        return Outcome::Missing(Space::Short);
    }
    trace.note(|| Step::new("outside", text_of(name.wire()), StepResult::Skipped("not a name of the cluster".into())));
    Outcome::NotOurs
}

/// Before the cluster has been learnt: whether some rule could match once it has.
fn could_be_ours(search: &Search<'_, '_>, name: &Name) -> bool {
    let labels = name.labels();
    let last = name.label(labels.wrapping_sub(1));
    let srv = is_underscored(name.label(0)) && is_underscored(name.label(1));
    let svc = last == b"\x03svc";
    let fits = match labels {
        0 => false,
        1..=3 => true,
        4 => srv || svc,
        _ => srv && svc && labels == 5,
    };
    fits && (labels == 1 || svc || !guarded(search, last))
}
