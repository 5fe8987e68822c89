//! Problems with the names of a cluster, and names that behave unexpectedly.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Catalog, links};
use crate::wire::{label_of, text_of};
use crate::zone::facts::{Key, ServiceType};
use crate::zone::{Diagnostic, tld};

/// Severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A name has no answer, or not the intended one.
    Error,
    /// A name works, but may behave unexpectedly.
    Warning,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// Severity.
    pub severity: Severity,
    /// Stable identifier of the kind of finding, for programs.
    pub code: &'static str,
    /// Affected object: `NAMESPACE/SERVICE` or a namespace.
    pub object: String,
    /// The problem.
    pub what: String,
    /// Its consequence.
    pub why: String,
    /// How to fix it.
    pub fix: String,
}

/// Returns all findings, sorted by severity, code and object.
pub fn examine(catalog: &Catalog, diagnostics: &[Diagnostic]) -> Vec<Finding> {
    let mut all = BTreeSet::new();
    all.extend(diagnostics.iter().map(from_diagnostic));
    for (key, known) in &catalog.services {
        services(catalog, key, known, &mut all);
    }
    shadows(catalog, &mut all);
    for namespace in &catalog.namespaces {
        namespaces(catalog, namespace, &mut all);
    }
    all.into_iter().collect()
}

fn finding(
    severity: Severity,
    code: &'static str,
    object: &dyn std::fmt::Display,
    [what, why, fix]: [String; 3],
) -> Finding {
    Finding { severity, code, object: object.to_string(), what, why, fix }
}

/// Converts `SERVICE.NAMESPACE`, as the table writes it, to `NAMESPACE/SERVICE`.
fn slashed(name: &str) -> String {
    name.split_once('.').map_or_else(|| name.to_owned(), |(service, namespace)| format!("{namespace}/{service}"))
}

/// Converts a diagnostic of the table's builder.
fn from_diagnostic(report: &Diagnostic) -> Finding {
    match report {
        Diagnostic::AliasClaimed { alias, granted_to, refused } => finding(
            Severity::Error,
            "conflicting-alias",
            &slashed(refused),
            [
                format!("its alias {alias} belongs to {}", slashed(granted_to)),
                format!("{alias} resolves to {}, which is older or comes first by name", slashed(granted_to)),
                "remove the alias from one of them (callsign.dev/alias)".into(),
            ],
        ),
        Diagnostic::AmbiguousDefault { kind, services } => finding(
            Severity::Error,
            "ambiguous-default",
            &services.iter().map(|service| slashed(service)).collect::<Vec<_>>().join(", "),
            [
                format!("all of them are annotated as the default for {kind}"),
                format!("{kind} does not resolve, because no answer is better than the wrong database"),
                "keep callsign.dev/default on only one of them".into(),
            ],
        ),
        Diagnostic::AliasShadowed { alias, claimed_by } => finding(
            Severity::Warning,
            "alias-shadowed",
            &slashed(claimed_by),
            [
                format!("its alias {alias} is also the name of a Service in its namespace"),
                format!("{alias} resolves to the Service of that name"),
                "choose another alias, or remove this one".into(),
            ],
        ),
        Diagnostic::TopLevelDomain { namespace } => finding(
            Severity::Warning,
            "top-level-domain",
            namespace,
            [
                format!(".{namespace} is a public top-level domain"),
                format!(
                    "NAME.{namespace} could be a Service or a public name, so it matches Services only: no aliases, databases or apps, and unknown names are not answered here"
                ),
                "rename the namespace, use full names, or allow it with --allow-tld-namespace".into(),
            ],
        ),
        Diagnostic::FqdnSkipped { service } => finding(
            Severity::Warning,
            "fqdn-endpoints",
            &slashed(service),
            [
                "it has several endpoints that are names, or both names and addresses".into(),
                "a CNAME has only one target, so these endpoints have no records".into(),
                "use a single EndpointSlice of addressType FQDN with one endpoint, or use addresses".into(),
            ],
        ),
    }
}

fn services(catalog: &Catalog, key: &Key, known: &super::ServiceView, all: &mut BTreeSet<Finding>) {
    match &known.fact.service_type {
        ServiceType::External(None) => {
            all.insert(finding(
                Severity::Error,
                "invalid-external-name",
                key,
                [
                    "its externalName is an IP address, or not a valid name".into(),
                    "a CNAME needs a name as its target, so this Service is answered with NXDOMAIN".into(),
                    "use a name, or create a Service without a selector and an EndpointSlice with the address".into(),
                ],
            ));
        }
        ServiceType::Headless if known.ready.is_empty() => {
            let listed = if known.total > 0 {
                format!("none of its {} endpoints is ready", known.total)
            } else {
                "it has no endpoints".to_owned()
            };
            all.insert(finding(
                Severity::Warning,
                "headless-without-endpoints",
                key,
                [
                    format!("it is headless, and {listed}"),
                    "its name is answered with NXDOMAIN until an endpoint is ready".into(),
                    "check its pods, their readiness probes, and its selector".into(),
                ],
            ));
        }
        ServiceType::Cluster(_) if known.has_slices && known.ready.is_empty() => {
            all.insert(finding(
                Severity::Warning,
                "no-ready-endpoint",
                key,
                [
                    format!("none of its {} endpoints is ready", known.total),
                    "its name resolves, but nothing accepts connections there".into(),
                    "check its pods, their readiness probes, and its selector".into(),
                ],
            ));
        }
        _ => {}
    }
    let written = catalog.links_of(key);
    let same = catalog.variables(key, &written, links::Style::Plain, None).err().into_iter().flatten();
    for wrong in same.filter(|wrong| matches!(wrong, links::LinkError::Conflict { .. })) {
        all.insert(finding(
            Severity::Error,
            "conflicting-links",
            key,
            [
                wrong.to_string(),
                "no variables can be created, because one would overwrite the other".into(),
                "give one of them an alias (callsign.dev/alias) and link to that".into(),
            ],
        ));
    }
    for text in written {
        let wrong = catalog.variables(key, std::slice::from_ref(&text), links::Style::Plain, None).err();
        let Some(wrong) = wrong.into_iter().flatten().next() else { continue };
        let fix = match &wrong {
            links::LinkError::NoPorts { is_external: true, .. } => format!("write {text}:PORT in callsign.dev/links"),
            links::LinkError::NoPorts { .. } => "add the Service's ports, or remove the link".to_owned(),
            links::LinkError::NoSuchPort { to, .. } => format!("write {to}:PORT with one of its ports"),
            _ => format!(
                "correct callsign.dev/links; `callsign explain {text} --from {}` says what was looked for",
                key.namespace
            ),
        };
        let (code, what, why) = match &wrong {
            links::LinkError::NoPorts { .. } => (
                "link-without-ports",
                "has no ports".to_owned(),
                "variables need a port, and the linked Service has none",
            ),
            links::LinkError::NoSuchPort { has, .. } => (
                "link-to-missing-port",
                format!("does not have that port; it has {has}"),
                "variables would name a port on which nothing listens",
            ),
            _ => (
                "broken-link",
                "does not exist, or is not visible to it".to_owned(),
                "the linked name does not resolve for this Service",
            ),
        };
        all.insert(finding(Severity::Error, code, key, [format!("it links to {text}, which {what}"), why.into(), fix]));
    }
}

/// Adds findings for names that hide other names.
fn shadows(catalog: &Catalog, all: &mut BTreeSet<Finding>) {
    // For `x.y` from namespace C, endpoint x of C's headless Service y precedes Service x of namespace y.
    for (key, _) in catalog.services.iter().filter(|(key, _)| catalog.has_namespace(&key.name)) {
        let Some(service) = catalog.entry(key) else { continue };
        for endpoint in service.endpoints.all.iter().filter_map(|endpoint| endpoint.label.as_deref()) {
            let endpoint = text_of(endpoint);
            let hidden = Key::new(&key.name, &endpoint);
            if catalog.services.contains_key(&hidden) {
                all.insert(finding(
                    Severity::Warning,
                    "shadowed-by-endpoint",
                    &hidden,
                    [
                        format!("{endpoint}.{} is also an endpoint of Service {key}", key.name),
                        format!("in namespace {} that name resolves to the endpoint", key.namespace),
                        format!("use {endpoint}.{}.svc there", key.name),
                    ],
                ));
            }
        }
    }
    // A bare name can be both an app and a Service in the caller's namespace, which takes precedence.
    let prefix = String::from_utf8_lossy(&catalog.zone.settings.application_prefix).into_owned();
    let mut apps: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for namespace in catalog.namespaces().filter(|_| !prefix.is_empty()) {
        if let Some(app) = namespace.strip_prefix(&prefix).filter(|app| !app.is_empty()) {
            let others = catalog.services.keys().filter(|key| *key.name == *app && *key.namespace != *namespace);
            apps.insert(app.to_owned(), others.map(|key| key.namespace.to_string()).collect());
        }
    }
    for (app, namespaces) in apps.into_iter().filter(|(_, namespaces)| !namespaces.is_empty()) {
        let list = namespaces.join(", ");
        all.insert(finding(
            Severity::Warning,
            "app-shadowed",
            &format!("{prefix}{app}"),
            [
                format!("Services with the app's name exist in {list}"),
                format!("callers there that look up {app} reach that Service, not the app"),
                "use the app's full name there; `callsign dns` lists it".into(),
            ],
        ));
    }
}

fn namespaces(catalog: &Catalog, namespace: &str, all: &mut BTreeSet<Finding>) {
    let settings = &catalog.zone.settings;
    if matches!(namespace, "svc" | "pod") {
        all.insert(finding(
            Severity::Warning,
            "reserved-namespace",
            &namespace,
            [
                format!("the namespace has the reserved name {namespace}"),
                format!("NAME.NAMESPACE.{namespace} is treated as the beginning of a full name"),
                "rename it, or use full names for its Services".into(),
            ],
        ));
    }
    let label = label_of(namespace).ok();
    let is_app = namespace.as_bytes().strip_prefix(&*settings.application_prefix).is_some_and(|app| !app.is_empty());
    let place = label.as_deref().and_then(|label| catalog.zone.namespace(catalog.zone.label(label)));
    let several = place.filter(|place| is_app && place.application.len() > 1);
    let app = namespace.get(settings.application_prefix.len()..).unwrap_or_default();
    if let (Some(place), Ok(own)) = (several, settings.namespace_name(namespace))
        && !tld::is_public(app)
        // The app rule decides a bare name only if nothing in the app's own namespace has that name.
        && catalog.resolved(app, &own).is_none()
    {
        all.insert(finding(
            Severity::Warning,
            "app-without-main",
            &namespace,
            [
                format!("none of its {} Services is the main one", place.application.len()),
                format!("the app name {app} does not resolve"),
                "label the main one service.name: main, or set app.kubernetes.io/instance and /name as charts do"
                    .into(),
            ],
        ));
    }
}
