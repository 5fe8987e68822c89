//! What is wrong with the names of a cluster, or will surprise somebody.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Catalog, links};
use crate::wire::{label_of, text_of};
use crate::zone::facts::{Key, ServiceType};
use crate::zone::{Diagnostic, tld};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A name has no answer, or another one than was meant.
    Error,
    /// It works, and will surprise somebody.
    Warning,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Which kind of finding, for programs.
    pub code: &'static str,
    /// Where: `NAMESPACE/SERVICE` or a namespace.
    pub object: String,
    /// What it is.
    pub what: String,
    /// Why it matters.
    pub why: String,
    /// What to do.
    pub fix: String,
}

/// All findings, the worst first; then by object.
pub fn examine(catalog: &Catalog, reports: &[Diagnostic]) -> Vec<Finding> {
    let mut all = BTreeSet::new();
    all.extend(reports.iter().map(of_report));
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

/// `NAMESPACE/SERVICE`, of a Service that the table calls `SERVICE.NAMESPACE`.
fn slashed(name: &str) -> String {
    name.split_once('.').map_or_else(|| name.to_owned(), |(service, namespace)| format!("{namespace}/{service}"))
}

/// What the builder of the table has met.
fn of_report(report: &Diagnostic) -> Finding {
    match report {
        Diagnostic::AliasClaimed { alias, kept_by, refused } => finding(
            Severity::Error,
            "alias-claimed-twice",
            &slashed(refused),
            [
                format!("its alias {alias} belongs to {}", slashed(kept_by)),
                format!("{alias} leads to {}, which has it by age or name", slashed(kept_by)),
                "take the alias from one of them (callsign.dev/alias)".into(),
            ],
        ),
        Diagnostic::TwoDefaults { kind, services } => finding(
            Severity::Error,
            "two-defaults",
            &services.iter().map(|service| slashed(service)).collect::<Vec<_>>().join(", "),
            [
                format!("all of them are the default of {kind}"),
                "the name of the kind has no answer: none is better than the wrong database".into(),
                "leave callsign.dev/default on one of them".into(),
            ],
        ),
        Diagnostic::AliasShadowed { alias, claimed_by } => finding(
            Severity::Warning,
            "alias-shadowed",
            &slashed(claimed_by),
            [
                format!("its alias {alias} is also the name of a Service there"),
                format!("{alias} leads to the Service of that name"),
                "choose another alias, or remove it".into(),
            ],
        ),
        Diagnostic::TopLevelDomain { namespace } => finding(
            Severity::Warning,
            "top-level-domain",
            namespace,
            [
                format!(".{namespace} is a public top-level domain"),
                format!(
                    "NAME.{namespace} could be a Service or a site of the Internet: aliases, databases and apps of that namespace are not found by it, nor are typing errors in it answered here"
                ),
                "rename the namespace, use full names, or allow it with --allow-tld-namespace".into(),
            ],
        ),
        Diagnostic::FqdnSkipped { service } => finding(
            Severity::Warning,
            "fqdn-endpoints",
            &slashed(service),
            [
                "it has several endpoints that are names, or names beside addresses".into(),
                "a name can be an alias of one other name only: these endpoints have no records".into(),
                "keep one EndpointSlice of addressType FQDN with one endpoint, or use addresses".into(),
            ],
        ),
    }
}

fn services(catalog: &Catalog, key: &Key, known: &super::ServiceView, all: &mut BTreeSet<Finding>) {
    match &known.fact.reach {
        ServiceType::External(None) => {
            all.insert(finding(
                Severity::Error,
                "external-name-is-no-name",
                key,
                [
                    "its externalName is an IP address, or no name".into(),
                    "a CNAME leads to a name: this Service is answered NXDOMAIN".into(),
                    "give it a name, or make a Service without selector and an EndpointSlice with the address".into(),
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
                    "its name is answered NXDOMAIN until one is".into(),
                    "look at its pods and their readiness probes, and at its selector".into(),
                ],
            ));
        }
        ServiceType::Cluster(_) if known.sliced && known.ready.is_empty() => {
            all.insert(finding(
                Severity::Warning,
                "no-ready-endpoint",
                key,
                [
                    format!("none of its {} endpoints is ready", known.total),
                    "its name has an address, and nobody answers there".into(),
                    "look at its pods and their readiness probes, and at its selector".into(),
                ],
            ));
        }
        _ => {}
    }
    let written = catalog.links_of(key);
    let same = catalog.variables(key, &written, links::Style::Plain).err().into_iter().flatten();
    for wrong in same.filter(|wrong| matches!(wrong, links::LinkError::Same { .. })) {
        all.insert(finding(
            Severity::Error,
            "links-of-one-name",
            key,
            [
                wrong.to_string(),
                "no variables can be made: one would hide the other".into(),
                "give one of them an alias (callsign.dev/alias) and link to that".into(),
            ],
        ));
    }
    for text in written {
        let [code, why] = match catalog.variables(key, std::slice::from_ref(&text), links::Style::Plain) {
            Err(wrong) if matches!(wrong.first(), Some(links::LinkError::NoPorts { .. })) => {
                ["link-without-ports", "no variables can be made of a link to nothing that listens"]
            }
            Err(_) => ["link-to-nothing", "the name that it would be told does not resolve for it"],
            Ok(_) => continue,
        };
        let without =
            if code == "link-to-nothing" { "does not exist, or is not visible to it" } else { "has no ports" };
        all.insert(finding(
            Severity::Error,
            code,
            key,
            [
                format!("it links to {text}, which {without}"),
                why.into(),
                format!(
                    "correct callsign.dev/links; `callsign explain {text} --from {}` says what is near",
                    key.namespace
                ),
            ],
        ));
    }
}

/// Names of which one hides another.
fn shadows(catalog: &Catalog, all: &mut BTreeSet<Finding>) {
    // `x.y` asked in C: endpoint x of the headless Service y of C comes before Service x of namespace y.
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
                        format!("in namespace {} that name leads to the endpoint", key.namespace),
                        format!("write {endpoint}.{}.svc there", key.name),
                    ],
                ));
            }
        }
    }
    // A bare name that is an app's, and a Service's in somebody's namespace.
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
                format!("a Service of the app's name is in {list}"),
                format!("{app}, asked there, leads to that Service and not to the app"),
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
                format!("a namespace is called {namespace}"),
                format!("NAME.NAMESPACE.{namespace} is read as the beginning of a full name"),
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
        // A bare app name is answered by the application rule alone when nothing of that name is in the namespace.
        && catalog.resolved(app, &own).is_none()
    {
        all.insert(finding(
            Severity::Warning,
            "app-without-main",
            &namespace,
            [
                format!("none of its {} Services is the main one", place.application.len()),
                format!("the name {app} has no answer"),
                "label the main one service.name: main, or set app.kubernetes.io/instance and /name as charts do"
                    .into(),
            ],
        ));
    }
}
