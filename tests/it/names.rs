//! The rules for short names: every row is queried as A and AAAA, in lower, upper and mixed case, by the caller that it
//! names and by a caller without a known namespace.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::common::{self, query, reply, text};
use callsign::answer::Limit;
use callsign::resolve::{NoTrace, Node, Outcome, Probes, Recorded, StepResult, resolve};
use callsign::wire::Name;
use callsign::zone::{Caller, LazyCaller, OwnPod, Settings, Zone};
use proptest::prelude::*;

/// Compact objects: `service NS/NAME ADDRESS [key=value …]`, `headless NS/NAME HOST=ADDRESS …`, `namespace NAME [visible-to]`.
/// Values of `alias`, `visible` and the like may list several with `+`.
fn objects(lines: &str) -> String {
    let mut yaml = String::new();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split(' ').collect();
        let (namespace, name) = words[1].split_once('/').unwrap_or(("", words[1]));
        let value = |key: &str| {
            words.iter().find_map(|word| word.strip_prefix(&format!("{key}="))).map(|value| value.replace('+', ", "))
        };
        let mut annotations = String::new();
        for (key, annotation) in [("alias", "alias"), ("visible", "visible-to"), ("default", "default")] {
            if let Some(value) = value(key) {
                annotations += &format!("callsign.dev/{annotation}: \"{value}\", ");
            }
        }
        let mut labels = String::new();
        for (key, label) in
            [("release", "app.kubernetes.io/instance"), ("chart", "app.kubernetes.io/name"), ("part", "service.name")]
        {
            if let Some(value) = value(key) {
                labels += &format!("{label}: \"{value}\", ");
            }
        }
        let created =
            value("created").map_or(String::new(), |year| format!("creationTimestamp: \"{year}-01-01T00:00:00Z\", "));
        let meta = |name: &str| {
            format!(
                "metadata: {{name: \"{name}\", namespace: \"{namespace}\", {created}annotations: {{{annotations}}}, labels: {{{labels}}}}}"
            )
        };
        yaml += &match words[0] {
            "namespace" => {
                format!("---\nkind: Namespace\nmetadata: {{name: \"{name}\", annotations: {{{annotations}}}}}\n")
            }
            "service" => format!(
                "---\nkind: Service\n{}\nspec: {{clusterIP: {}, ports: [{{name: http, port: 80}}]}}\n",
                meta(name),
                words[2]
            ),
            "external" => format!(
                "---\nkind: Service\n{}\nspec: {{type: ExternalName, externalName: {}}}\n",
                meta(name),
                words[2]
            ),
            "headless" => {
                let endpoints: Vec<String> = words[2..]
                    .iter()
                    .filter_map(|word| word.split_once('='))
                    .filter(|(key, _)| !matches!(*key, "alias" | "visible" | "default" | "created"))
                    .map(|(host, address)| format!("{{addresses: [{address}], hostname: {host}}}"))
                    .collect();
                format!(
                    "---\nkind: Service\n{}\nspec: {{clusterIP: None}}\n---\nkind: EndpointSlice\n\
                     metadata: {{name: {name}-1, namespace: {namespace}, labels: {{kubernetes.io/service-name: {name}}}}}\n\
                     addressType: IPv4\nports: [{{name: http, port: 80}}]\nendpoints: [{}]\n",
                    meta(name),
                    endpoints.join(", ")
                )
            }
            other => panic!("{other}"),
        };
    }
    yaml
}

/// The case in prose, the question, the caller's namespace, the caller's answer, and the answer of a caller without a
/// namespace. Answers are addresses or the rcode.
type Row = (&'static str, &'static str, &'static str, &'static str, &'static str);

/// The addresses of a reply, or its rcode, with `+soa` if it has an SOA.
fn short(reply: &[u8]) -> String {
    let text = text(reply);
    let addresses: Vec<&str> = text
        .lines()
        .skip(1)
        .filter(|line| line.contains(" A ") && !line.starts_with("glue"))
        .map(|line| line.rsplit(' ').next().unwrap())
        .collect();
    if !addresses.is_empty() {
        return addresses.join(" ");
    }
    if let Some(line) = text.lines().nth(1).filter(|line| line.contains(" CNAME ") || line.contains(" SRV ")) {
        return line.split(' ').skip(2).collect::<Vec<_>>().join(" ");
    }
    let rcode = text.split([' ', '\n']).next().unwrap();
    if text.contains("\nsoa ") { format!("{rcode}+soa") } else { rcode.to_owned() }
}

fn check(title: &str, zone: &Zone, rows: &[Row]) {
    for (prose, question, namespace, expected, without_namespace) in rows {
        let namespace = zone.settings.namespace_name(namespace).unwrap();
        let (name, rtype) = question.split_once(' ').unwrap_or((question, "A"));
        for (caller, expected) in [(Caller::Namespace(&namespace), expected), (Caller::Unknown, without_namespace)] {
            let upper = name.to_uppercase();
            let mixed: String =
                name.chars().enumerate().map(|(at, c)| if at % 2 == 0 { c.to_ascii_uppercase() } else { c }).collect();
            for name in [name, &upper, &mixed] {
                let query = query(&format!("{name} {rtype}"), Some(1232));
                let found = reply(zone, caller, &query, Limit::Datagram).unwrap();
                assert_eq!(short(&found), **expected, "{title}: {prose}: {name} by {caller:?}");
                assert_eq!(
                    found[12..12 + name.len() + 2],
                    query[12..12 + name.len() + 2],
                    "the question is echoed unchanged"
                );
                // A and AAAA of one name have one rcode: a client library that gets NXDOMAIN for one drops both.
                let rcode = |rtype: &str| {
                    reply(zone, caller, &self::query(&format!("{name} {rtype}"), None), Limit::Datagram).unwrap()[3]
                        & 15
                };
                assert_eq!(rcode("A"), rcode("AAAA"), "{title}: {prose}: {name}");
                assert_eq!(rcode("A"), rcode("TXT"), "{title}: {prose}: {name}");
            }
        }
    }
}

fn cluster(lines: &str, flags: &[&str]) -> Arc<Zone> {
    common::zone(&objects(lines), flags)
}

#[test]
fn the_examples_of_the_documentation_resolve() {
    let zone = cluster(
        "service web/api 10.0.0.1
         service other/lonely 10.0.0.2
         service web-front-end/web-worker 10.0.0.3
         service web/mysql-default 10.0.0.4
         service web/mysql-leopard 10.0.0.5
         service marked/mysql-leopard 10.0.0.6 default=true
         service marked/mysql-default 10.0.0.7
         service plain/mysql 10.0.0.8
         service plain/redis-exporter 10.0.0.9
         service ix-sabnzbd/sabnzbd 10.0.0.10
         service ix-sab/sab-sabnzbd 10.0.0.11 release=sab chart=sabnzbd
         service ix-traefik/traefik 10.0.0.12
         service ix-traefik/traefik-metrics 10.0.0.13
         service default/kubernetes 10.0.0.14
         service svc/default 10.0.0.15
         namespace ix-sonarr
         service api/else 10.0.0.16",
        &[],
    );
    check(
        "examples",
        &zone,
        &[
            ("a Service of the caller's own namespace", "api", "web", "10.0.0.1", "NOERROR"),
            ("a Service of another namespace only", "lonely", "web", "NXDOMAIN", "NXDOMAIN"),
            ("service.namespace", "web-worker.web-front-end", "web", "10.0.0.3", "10.0.0.3"),
            ("a database by its name", "mysql-leopard", "web", "10.0.0.5", "NXDOMAIN"),
            ("the default database", "mysql", "web", "10.0.0.4", "NXDOMAIN"),
            ("the database marked default beats -default", "mysql", "marked", "10.0.0.6", "NXDOMAIN"),
            ("-default finds a sole Service without the suffix", "mysql-default", "plain", "10.0.0.8", "NXDOMAIN"),
            ("an exporter is not a database", "redis", "plain", "NXDOMAIN", "NXDOMAIN"),
            ("an application whose name contains its chart", "sabnzbd", "ix-sonarr", "10.0.0.10", "10.0.0.10"),
            ("an application whose name does not contain its chart", "sab", "ix-sonarr", "10.0.0.11", "10.0.0.11"),
            ("a service of an application", "metrics.traefik", "ix-sonarr", "10.0.0.13", "10.0.0.13"),
            (
                "full names never follow the rules for short names",
                "sab.ix-sab.svc.cluster.local",
                "ix-sonarr",
                "NXDOMAIN+soa",
                "NXDOMAIN+soa",
            ),
            ("x.y.svc before anything else", "kubernetes.default.svc", "web", "10.0.0.14", "10.0.0.14"),
            ("a namespace makes its bare name exist", "api", "plain", "NOERROR", "NOERROR"),
            ("case does not matter", "api.web", "other", "10.0.0.1", "10.0.0.1"),
        ],
    );
}

#[test]
fn names_with_one_label_follow_the_rules_in_order() {
    let zone = cluster(
        "service web/api 10.0.0.1 alias=backend+www
         service web/www 10.0.0.2
         headless web/empty
         service ix-empty/empty 10.0.0.3
         service ix-plex/plex 10.0.0.4
         service web/plex 10.0.0.5
         service two/mysql-a 10.0.1.1 default=true
         service two/mysql-b 10.0.1.2 default=true
         service two/mysql-default 10.0.1.3
         service ix-mysql/mysql 10.0.1.4
         service both/redis 10.0.2.1
         service both/redis-default 10.0.2.2
         service both/redis-x 10.0.2.3 default=true
         service both/postgres-x 10.0.2.4 default=true alias=postgresql
         service both/postgresql-y 10.0.2.5 default=true
         external web/out www.example.com
         headless web/db db-0=10.0.3.1 db-1=10.0.3.2",
        &[],
    );
    check(
        "one label",
        &zone,
        &[
            ("rule 1, a Service", "api", "web", "10.0.0.1", "NXDOMAIN"),
            ("rule 2, an alias", "backend", "web", "10.0.0.1", "NXDOMAIN"),
            ("an alias is valid only in its own namespace", "backend", "both", "NXDOMAIN", "NXDOMAIN"),
            ("a Service beats an alias", "www", "web", "10.0.0.2", "NXDOMAIN"),
            ("a headless Service without endpoints still ends the search", "empty", "web", "NXDOMAIN", "10.0.0.3"),
            ("a headless Service", "db", "web", "10.0.3.1 10.0.3.2", "NXDOMAIN"),
            ("a Service beats an application", "plex", "web", "10.0.0.5", "10.0.0.4"),
            ("rule 4, an application, is for apps and unknown callers", "plex", "both", "NXDOMAIN", "10.0.0.4"),
            ("two marked defaults: no answer, not even -default", "mysql", "two", "NXDOMAIN", "10.0.1.4"),
            ("a Service with the name of a kind comes first", "redis", "both", "10.0.2.1", "NXDOMAIN"),
            ("a Service named -default comes first too", "redis-default", "both", "10.0.2.2", "NXDOMAIN"),
            ("an alias comes before the database rule", "postgresql", "both", "10.0.2.4", "NXDOMAIN"),
            ("the marked default of a kind", "postgres", "both", "10.0.2.4", "NXDOMAIN"),
            ("an ExternalName", "out", "web", "CNAME www.example.com.", "NXDOMAIN"),
            ("the parent of the cluster domain", "local", "web", "NOERROR", "NOERROR"),
            ("svc alone is not a name", "svc", "web", "NXDOMAIN", "NXDOMAIN"),
            ("a bare name is never forwarded", "com", "web", "NXDOMAIN", "NXDOMAIN"),
        ],
    );
}

#[test]
fn names_with_two_or_more_labels_follow_the_rules_in_order() {
    let zone = cluster(
        "service web/api 10.0.0.1 alias=backend
         service orders/web 10.0.0.2
         headless web/db db-0=10.0.3.1 api=10.0.3.2
         headless web/cache cache-0=10.0.3.7
         headless web/com c=10.0.3.8
         service db/db-0 10.0.0.3
         service db/other 10.0.0.4
         service orders/mysql-default 10.0.0.5
         service orders/redis-main 10.0.0.6 default=true
         service ix-media/media-plex 10.0.1.1 release=media chart=plex
         service ix-media/media-plex-tcp 10.0.1.2 release=media chart=plex
         service ix-media/extra 10.0.1.3
         headless orders/quiet
         external orders/out api.web.svc.cluster.local",
        &[],
    );
    check(
        "two or more labels",
        &zone,
        &[
            ("rule 1, an endpoint of the caller's own headless Service", "db-0.db", "web", "10.0.3.1", "10.0.0.3"),
            ("an endpoint that is not ready never leaves the cluster", "cache-2.cache", "web", "NXDOMAIN", "REFUSED"),
            ("a headless Service called com captures no public name", "www.com", "web", "REFUSED", "REFUSED"),
            ("rule 2 if that Service has no such endpoint", "other.db", "web", "10.0.0.4", "10.0.0.4"),
            ("only rule 1 finds endpoints", "api.db", "web", "10.0.3.2", "NXDOMAIN"),
            ("rule 2", "web.orders", "web", "10.0.0.2", "10.0.0.2"),
            ("rule 3, an alias", "backend.web", "orders", "10.0.0.1", "10.0.0.1"),
            ("rule 3, -default", "mysql.orders", "web", "10.0.0.5", "10.0.0.5"),
            ("rule 3, a marked default", "redis.orders", "web", "10.0.0.6", "10.0.0.6"),
            ("rule 4, <main>-x", "tcp.media", "web", "10.0.1.2", "10.0.1.2"),
            ("rule 4, x itself", "extra.media", "web", "10.0.1.3", "10.0.1.3"),
            ("rule 2 comes before rule 4", "media-plex.ix-media", "web", "10.0.1.1", "10.0.1.1"),
            ("a headless Service without endpoints ends the search", "quiet.orders", "web", "NXDOMAIN", "NXDOMAIN"),
            ("an ExternalName into the cluster is followed", "out.orders", "web", "10.0.0.1", "10.0.0.1"),
            ("x.y.svc", "api.web.svc", "orders", "10.0.0.1", "10.0.0.1"),
            ("x.y.svc has no aliases", "backend.web.svc", "web", "NXDOMAIN", "NXDOMAIN"),
            ("ns.svc has names below it", "web.svc", "orders", "NOERROR", "NOERROR"),
            ("svc below a missing namespace does not exist", "nope.svc", "orders", "NXDOMAIN", "NXDOMAIN"),
            ("h.x.y", "db-0.db.web", "orders", "10.0.3.1", "10.0.3.1"),
            ("h.x.y.svc", "db-0.db.web.svc", "orders", "10.0.3.1", "10.0.3.1"),
            ("h.x.y of a Service that is not headless", "db-0.api.web", "orders", "NXDOMAIN", "NXDOMAIN"),
            ("_p._t.x", "_http._tcp.api SRV", "web", "SRV 0 100 80 api.web.svc.cluster.local.", "NXDOMAIN"),
            (
                "_p._t.x by an alias",
                "_http._tcp.backend SRV",
                "web",
                "SRV 0 100 80 api.web.svc.cluster.local.",
                "NXDOMAIN",
            ),
            (
                "_p._t.x.y",
                "_http._tcp.api.web SRV",
                "orders",
                "SRV 0 100 80 api.web.svc.cluster.local.",
                "SRV 0 100 80 api.web.svc.cluster.local.",
            ),
            (
                "_p._t.x.y.svc",
                "_http._tcp.api.web.svc SRV",
                "orders",
                "SRV 0 100 80 api.web.svc.cluster.local.",
                "SRV 0 100 80 api.web.svc.cluster.local.",
            ),
            ("_t.x.y has ports below it", "_tcp.api.web", "orders", "NOERROR", "NOERROR"),
            ("an unknown port", "_smtp._tcp.api.web SRV", "orders", "NXDOMAIN", "NXDOMAIN"),
        ],
    );
}

#[test]
fn dotted_names_without_a_match_are_denied_refused_or_forwarded() {
    let lines = "service web/api 10.0.0.1
         service dev/api 10.0.0.2 alias=other
         service com/google 10.0.0.3
         service ix-io/io 10.0.0.4
         headless com/h a=10.0.0.5";
    let zone = cluster(lines, &[]);
    check(
        "without upstreams",
        &zone,
        &[
            ("a misspelt Service in a namespace never leaks", "apj.web", "web", "NXDOMAIN", "NXDOMAIN"),
            ("nor does a longer name below a namespace", "a.b.c.web", "web", "NXDOMAIN", "NXDOMAIN"),
            ("a namespace that is a top-level domain captures a Service", "api.dev", "web", "10.0.0.2", "10.0.0.2"),
            ("it does not capture an alias", "other.dev", "web", "REFUSED", "REFUSED"),
            ("it does not capture other names", "nope.dev", "web", "REFUSED", "REFUSED"),
            ("its own callers find its aliases", "other.dev", "dev", "10.0.0.2", "REFUSED"),
            ("its own callers get no other names either", "nope.dev", "dev", "REFUSED", "REFUSED"),
            (".local outside of the cluster (RFC 6762)", "printer.local", "web", "NXDOMAIN", "NXDOMAIN"),
            ("localhost (RFC 6761)", "localhost", "web", "127.0.0.1", "127.0.0.1"),
            ("below localhost", "x.localhost", "web", "127.0.0.1", "127.0.0.1"),
            (".invalid (RFC 6761)", "x.invalid", "web", "NXDOMAIN", "NXDOMAIN"),
            (".onion (RFC 7686)", "x.onion", "web", "NXDOMAIN", "NXDOMAIN"),
            (".test (RFC 6761)", "x.test", "web", "NXDOMAIN", "NXDOMAIN"),
            (".internal may exist elsewhere", "host.internal", "web", "REFUSED", "REFUSED"),
            ("any other name", "www.example.com", "web", "REFUSED", "REFUSED"),
            ("without upstreams, a namespace captures com", "google.com", "web", "10.0.0.3", "10.0.0.3"),
        ],
    );
    // With an upstream, most namespaces do not capture a top-level domain.
    let guarded = |flags: &[&str]| {
        let mut settings = common::config(flags).settings;
        settings.forwarding = true;
        let (changes, _) = callsign::cluster::manifests::read_text(&objects(lines)).unwrap();
        let events = changes.into_iter().map(callsign::cluster::Event::Change).collect();
        callsign::cluster::publish::build(callsign::zone::Builder::new(Arc::new(settings)), events).0
    };
    let outcome = |zone: &Zone, name: &str, namespace: &str| {
        let namespace = zone.settings.namespace_name(namespace).unwrap();
        let name = Name::parse(&callsign::wire::name_from_text(name).unwrap(), 0).unwrap();
        let lazy_caller = LazyCaller::new(zone, Caller::Namespace(&namespace));
        match resolve(&lazy_caller, &name, NoTrace) {
            Outcome::Found(..) => "found",
            Outcome::Missing(_) => "missing",
            Outcome::NotOurs => "forwarded",
            Outcome::NotReady => "not ready",
        }
    };
    let zone = guarded(&[]);
    assert_eq!(outcome(&zone, "google.com", "web"), "forwarded", "no namespace captures com");
    assert_eq!(outcome(&zone, "a.h.com", "web"), "forwarded");
    assert_eq!(outcome(&zone, "_http._tcp.google.com", "web"), "forwarded");
    assert_eq!(outcome(&zone, "google.com", "com"), "found", "except for callers in that namespace");
    assert_eq!(outcome(&zone, "api.dev", "web"), "found");
    assert_eq!(outcome(&zone, "nope.dev", "web"), "forwarded");
    assert_eq!(outcome(&zone, "apj.web", "web"), "missing", "a misspelt Service never leaks");
    assert_eq!(outcome(&zone, "com", "web"), "found", "a bare name is never forwarded");
    let zone = guarded(&["--allow-tld-namespace", "com"]);
    assert_eq!(outcome(&zone, "google.com", "web"), "found", "--allow-tld-namespace");
}

#[test]
fn the_oldest_service_owns_a_contested_alias() {
    let (zone, diagnostics) = common::zone_and_diagnostics(
        &objects(
            "service web/young 10.0.0.1 alias=db created=2025
             service web/old 10.0.0.2 alias=db created=2020
             service web/aaa 10.0.0.3 alias=tie created=2020
             service web/bbb 10.0.0.4 alias=tie created=2020
             service web/taken 10.0.0.5
             service web/thief 10.0.0.6 alias=taken",
        ),
        &[],
    );
    check(
        "aliases",
        &zone,
        &[
            ("the older Service owns it", "db", "web", "10.0.0.2", "NXDOMAIN"),
            ("at equal age, the first by name owns it", "tie", "web", "10.0.0.3", "NXDOMAIN"),
            ("a Service beats an alias", "taken", "web", "10.0.0.5", "NXDOMAIN"),
        ],
    );
    assert_eq!(diagnostics.iter().filter(|line| line.contains("AliasClaimed")).count(), 2, "{diagnostics:?}");
    assert!(diagnostics.iter().any(|line| line.contains("AliasShadowed") && line.contains("taken")), "{diagnostics:?}");
}

#[test]
fn applications_resolve_to_their_main_service() {
    let zone = cluster(
        "service ix-one/whatever 10.0.0.1
         service ix-two/a 10.0.0.2
         service ix-two/b 10.0.0.3
         service ix-labelled/x 10.0.0.4 part=main
         service ix-labelled/y 10.0.0.5
         service ix-named/named 10.0.0.6
         service ix-named/z 10.0.0.7 part=main
         service ix-upper/home-assistant 10.0.0.8 release=home-assistant chart=Home-Assistant
         service ix-upper/postgres 10.0.0.9
         service ix-sub/sub-app 10.0.0.10 release=sub chart=app part=main
         service ix-sub/sub-postgresql 10.0.0.11 release=sub chart=postgresql",
        &["--application-callers", "all"],
    );
    check(
        "applications",
        &zone,
        &[
            ("the only Service", "one", "web", "10.0.0.1", "10.0.0.1"),
            ("several Services without a main one", "two", "web", "NXDOMAIN", "NXDOMAIN"),
            ("the Service labelled main", "labelled", "web", "10.0.0.4", "10.0.0.4"),
            ("the Service with the application's name", "named", "web", "10.0.0.6", "10.0.0.6"),
            ("the full name, in lower case", "upper", "web", "10.0.0.8", "10.0.0.8"),
            ("a subchart: the Service labelled main", "sub", "web", "10.0.0.10", "10.0.0.10"),
            ("a missing service of an application", "postgresql.sub", "web", "REFUSED", "REFUSED"),
            ("an unknown application", "three", "web", "NXDOMAIN", "NXDOMAIN"),
        ],
    );
    let apps = "service ix-one/one 10.0.0.1\nservice ix-other/db 10.0.0.2\nservice web/api 10.0.0.3";
    check(
        "--application-callers apps, the default",
        &cluster(apps, &[]),
        &[
            ("an app", "one", "ix-other", "10.0.0.1", "10.0.0.1"),
            ("a caller that is no app, whose bare names nobody else may catch", "one", "web", "NXDOMAIN", "10.0.0.1"),
            ("a dotted name says what it means", "one.one", "web", "10.0.0.1", "10.0.0.1"),
            ("so does a full name", "one.ix-one.svc.cluster.local", "web", "10.0.0.1", "10.0.0.1"),
        ],
    );
    check(
        "--application-callers all",
        &cluster(apps, &["--application-callers", "all"]),
        &[("a caller that is no app", "one", "web", "10.0.0.1", "10.0.0.1")],
    );
    let zone = cluster(
        "service app-x/x 10.0.0.1\nservice ix-y/y 10.0.0.2",
        &["--application-prefix", "app-", "--application-callers", "all"],
    );
    check(
        "--application-prefix",
        &zone,
        &[
            ("the configured prefix", "x", "web", "10.0.0.1", "10.0.0.1"),
            ("the default prefix is replaced", "y", "web", "NXDOMAIN", "NXDOMAIN"),
        ],
    );
    let zone = cluster(
        "service web/kafka-default 10.0.0.1\nservice web/mysql-default 10.0.0.2",
        &["--database-kinds", "kafka"],
    );
    check(
        "--database-kinds",
        &zone,
        &[
            ("a configured kind", "kafka", "web", "10.0.0.1", "NXDOMAIN"),
            ("the default kinds are replaced", "mysql", "web", "NXDOMAIN", "NXDOMAIN"),
        ],
    );
}

#[test]
fn visibility_is_enforced_for_each_caller() {
    let zone = cluster(
        "service a/own 10.0.0.1 visible=namespace
         service a/shared 10.0.0.2 visible=b+c
         service a/cluster 10.0.0.3 visible=cluster
         service a/open 10.0.0.4
         namespace closed visible=namespace
         service closed/inside 10.0.1.1
         service closed/out 10.0.1.2 visible=*
         service closed/some 10.0.1.3 visible=b
         namespace sealed visible=namespace
         service sealed/x 10.0.2.1
         service ix-hidden/hidden 10.0.3.1 visible=namespace",
        &[],
    );
    check(
        "visibility",
        &zone,
        &[
            ("namespace: a caller in it", "own.a", "a", "10.0.0.1", "NXDOMAIN"),
            ("namespace: a caller outside", "own.a", "b", "NXDOMAIN", "NXDOMAIN"),
            ("a list: a listed namespace", "shared.a", "b", "10.0.0.2", "NXDOMAIN"),
            ("a list: the Service's own namespace", "shared.a", "a", "10.0.0.2", "NXDOMAIN"),
            ("a list: an unlisted namespace", "shared.a", "d", "NXDOMAIN", "NXDOMAIN"),
            ("cluster: every known caller", "cluster.a", "d", "10.0.0.3", "NXDOMAIN"),
            ("no annotation: every caller", "open.a", "d", "10.0.0.4", "10.0.0.4"),
            ("the namespace's default, from outside", "inside.closed", "b", "NXDOMAIN", "NXDOMAIN"),
            ("the namespace's default, from inside", "inside.closed", "closed", "10.0.1.1", "NXDOMAIN"),
            ("a Service overrides its namespace", "out.closed", "b", "10.0.1.2", "10.0.1.2"),
            (
                "then the namespace exists for its callers",
                "closed.svc.cluster.local",
                "d",
                "NOERROR+soa",
                "NOERROR+soa",
            ),
            ("a sealed namespace does not exist", "sealed.svc.cluster.local", "d", "NXDOMAIN+soa", "NXDOMAIN+soa"),
            ("except for its own callers", "sealed.svc.cluster.local", "sealed", "NOERROR+soa", "NXDOMAIN+soa"),
            ("full names are hidden too", "own.a.svc.cluster.local", "b", "NXDOMAIN+soa", "NXDOMAIN+soa"),
            ("applications are hidden too", "hidden", "b", "NXDOMAIN", "NXDOMAIN"),
            ("a hidden application, from inside", "hidden", "ix-hidden", "10.0.3.1", "NXDOMAIN"),
        ],
    );
}

/// Callers that may not see a Service get, byte for byte, the replies of a cluster without it.
#[test]
fn a_hidden_service_is_indistinguishable_from_a_missing_one() {
    let common = "namespace web\nnamespace orders\nservice web/api 10.0.0.1\nexternal web/link secret.orders.svc.cluster.local\n\
                  service orders/other 10.0.0.9 created=2024 alias=db\nservice orders/mysql-default 10.0.0.8\n\
                  headless orders/pets a=10.0.2.1\nservice ix-app/app-second 10.0.4.2\n";
    let hidden = "service orders/secret 10.0.0.2 visible=namespace alias=hush+db created=2020\n\
                  service orders/mysql-hidden 10.0.0.3 visible=namespace default=true\n\
                  headless orders/ghosts a=10.0.2.1 b=10.0.2.2 visible=namespace\n\
                  service ix-app/app 10.0.4.1 visible=namespace\n";
    let flags = ["--reverse-cidr", "10.0.0.0/16"];
    let with = cluster(&format!("{common}{hidden}"), &flags);
    let without = cluster(common, &flags);
    let names = [
        "secret",
        "secret.orders",
        "secret.orders.svc",
        "secret.orders.svc.cluster.local",
        "hush.orders",
        "db.orders",
        "mysql.orders",
        "link",
        "link.web",
        "link.web.svc.cluster.local",
        "_http._tcp.secret.orders.svc.cluster.local",
        "_tcp.secret.orders.svc.cluster.local",
        "_http._tcp.secret.orders",
        "ghosts.orders",
        "b.ghosts.orders",
        "b.ghosts.orders.svc.cluster.local",
        "_http._tcp.ghosts.orders.svc.cluster.local",
        "2.0.0.10.in-addr.arpa",
        "1.2.0.10.in-addr.arpa",
        "2.2.0.10.in-addr.arpa",
        "2.0.10.in-addr.arpa",
        "0.10.in-addr.arpa",
        "app",
        "second.app",
        "app.ix-app",
        "x.secret.orders.svc.cluster.local",
    ];
    // The serials differ because these are two zones. A serial reveals changes, not Services.
    let without_serial = |zone: &Zone| {
        let mut zone = zone.clone();
        zone.soa = callsign::zone::Soa::new(7, 5, 5);
        zone
    };
    let (with, without) = (without_serial(&with), without_serial(&without));
    for caller in ["web", "elsewhere"] {
        for rtype in ["A", "AAAA", "SRV", "PTR", "CNAME", "ANY", "TXT"] {
            for name in names {
                let query = query(&format!("{name} {rtype}"), Some(1232));
                for known in [true, false] {
                    let replies = [&with, &without].map(|zone| {
                        let namespace = zone.settings.namespace_name(caller).unwrap();
                        let caller = if known { Caller::Namespace(&namespace) } else { Caller::Unknown };
                        reply(zone, caller, &query, Limit::Datagram).unwrap()
                    });
                    let both = || format!("{} / {}", text(&replies[0]), text(&replies[1]));
                    assert_eq!(replies[0], replies[1], "{name} {rtype} by {caller}, known: {known}: {}", both());
                }
            }
        }
    }
}

#[test]
fn the_address_of_a_client_determines_its_namespace() {
    let pods = r#"
---
kind: Pod
metadata: {name: a, namespace: web}
status: {phase: Running, podIPs: [{ip: 10.1.0.1}, {ip: "fd00::1"}]}
---
kind: Pod
metadata: {name: finished, namespace: orders}
status: {phase: Succeeded, podIP: 10.1.0.1}
---
kind: Pod
metadata: {name: going, namespace: orders, deletionTimestamp: "2026-01-01T00:00:00Z"}
status: {phase: Running, podIP: 10.1.0.1}
---
kind: Pod
metadata: {name: hosted, namespace: web}
spec: {hostNetwork: true}
status: {phase: Running, podIP: 192.168.0.1}
---
kind: Pod
metadata: {name: doubtful-1, namespace: web}
status: {phase: Running, podIP: 10.1.0.7}
---
kind: Pod
metadata: {name: doubtful-2, namespace: orders}
status: {phase: Pending, podIP: 10.1.0.7}
"#;
    let objects = format!(
        "{}{pods}",
        objects("service web/api 10.0.0.1\nservice orders/api 10.0.0.2\nservice deep/api 10.0.0.3")
    );
    let ask = |zone: &Zone, address: &str| {
        let caller = Caller::Address(address.parse().unwrap());
        short(&reply(zone, caller, &query("api A", None), Limit::Datagram).unwrap())
    };
    let zone = common::zone(
        &objects,
        &[
            "--pods",
            "all",
            "--callers",
            "10.2.0.0/16=orders",
            "--callers",
            "10.2.3.0/24=deep",
            "--callers",
            "10.1.0.200/32=deep",
        ],
    );
    for (case, address, expected) in [
        ("a live pod", "10.1.0.1", "10.0.0.1"),
        ("its other address", "fd00::1", "10.0.0.1"),
        ("a configured network", "10.2.9.9", "10.0.0.2"),
        ("the longest prefix", "10.2.3.9", "10.0.0.3"),
        ("a network takes precedence over a pod", "10.1.0.200", "10.0.0.3"),
        ("a pod on its node's network", "192.168.0.1", "NXDOMAIN"),
        ("an address that two live pods claim", "10.1.0.7", "NXDOMAIN"),
        ("an unknown address", "10.9.9.9", "NXDOMAIN"),
    ] {
        assert_eq!(ask(&zone, address), expected, "{case}");
    }
    let zone = common::zone(&objects, &["--pods", "all", "--namespace", "orders"]);
    assert_eq!(ask(&zone, "10.1.0.1"), "10.0.0.1", "a pod takes precedence over --namespace");
    assert_eq!(ask(&zone, "10.9.9.9"), "10.0.0.2", "--namespace");
}

#[test]
fn invalid_annotations_are_reported_and_leave_their_service_intact() {
    let many = (0..10_000).map(|n| format!("a{n}")).collect::<Vec<_>>().join("+");
    let (zone, diagnostics) = common::zone_and_diagnostics(
        &objects(&format!(
            "service web/empty 10.0.0.1 visible= 
             service web/odd 10.0.0.2 alias=good+not.a.label+-
             service web/many 10.0.0.3 alias={many}
             service web/maybe 10.0.0.4 default=perhaps
             service web/wrong 10.0.0.5 visible=a.b"
        )),
        &[],
    );
    check(
        "invalid annotations",
        &zone,
        &[
            ("the Service still resolves", "empty", "web", "10.0.0.1", "NXDOMAIN"),
            ("the valid aliases of a list count", "good", "web", "10.0.0.2", "NXDOMAIN"),
            ("a list of ten thousand aliases is rejected", "a77", "web", "NXDOMAIN", "NXDOMAIN"),
            ("the Service of such a list still resolves", "many", "web", "10.0.0.3", "NXDOMAIN"),
            ("default: perhaps", "maybe", "web", "10.0.0.4", "NXDOMAIN"),
            ("visible to an invalid namespace: its own sees it", "wrong", "web", "10.0.0.5", "NXDOMAIN"),
            ("and no other", "wrong.web", "orders", "NXDOMAIN", "NXDOMAIN"),
            ("visible to an empty list: its own namespace sees it", "empty.web", "web", "10.0.0.1", "NXDOMAIN"),
            ("and no other namespace", "empty.web", "orders", "NXDOMAIN", "NXDOMAIN"),
        ],
    );
    for (name, word) in
        [("empty", "visible-to"), ("odd", "not.a.label"), ("many", "10000"), ("maybe", "perhaps"), ("wrong", "a.b")]
    {
        let about: Vec<&String> = diagnostics.iter().filter(|line| line.contains(&format!("web/{name}"))).collect();
        assert_eq!(about.len(), 1, "{name}: {diagnostics:?}");
        assert!(about[0].contains(word), "{name}: {about:?}");
    }
}

/// The cost of a lookup is counted, not timed: at most five probes for one label, eight for two.
#[test]
fn a_lookup_needs_few_probes() {
    let zone = cluster(
        "service web/api 10.0.0.1
         service ix-mysql/x-mysql 10.0.0.2 release=x chart=mysql
         service ix-app/app 10.0.0.3
         headless web/mysql-exporter
         headless web/app a=10.0.0.4
         namespace web",
        &[],
    );
    let namespace = zone.settings.namespace_name("web").unwrap();
    let mut most = BTreeMap::new();
    for name in [
        "api",
        "mysql",
        "mysql-default",
        "redis",
        "redis-default",
        "nope",
        "app",
        "web",
        "api.web",
        "nope.web",
        "mysql.web",
        "mysql-default.app",
        "mysql.app",
        "nope.app",
        "redis.mysql",
        "x.y",
        "b.app",
        "api.web.svc.cluster.local",
    ] {
        let wire = callsign::wire::name_from_text(name).unwrap();
        let name = Name::parse(&wire, 0).unwrap();
        let probes = Probes::default();
        resolve(&LazyCaller::new(&zone, Caller::Namespace(&namespace)), &name, &probes);
        let entry = most.entry(name.labels()).or_insert(0);
        *entry = probes.count().max(*entry);
    }
    assert!(most[&1] <= 5, "{most:?}");
    assert!(most[&2] <= 8, "{most:?}");
    assert_eq!(most[&5], 1, "a full name needs one probe");
}

/// Generates clusters in the compact form of [`objects`].
fn random_cluster() -> impl Strategy<Value = String> {
    let names = || {
        prop::sample::select(vec![
            "api",
            "web",
            "mysql",
            "mysql-default",
            "mysql-x",
            "redis-default",
            "app",
            "dev",
            "com",
            "svc",
            "a",
        ])
    };
    let namespaces = || prop::sample::select(vec!["web", "orders", "ix-app", "ix-mysql", "dev", "com", "svc", "api"]);
    let kinds = prop::sample::select(vec!["service", "headless", "quiet"]);
    let extras = prop::sample::select(vec![
        "",
        " alias=a",
        " alias=api+b",
        " default=true",
        " visible=namespace",
        " visible=orders",
        " visible=cluster",
        " part=main",
    ]);
    let one =
        (kinds, namespaces(), names(), 1u8..250, extras).prop_map(|(kind, namespace, name, last, extra)| match kind {
            "service" => format!("service {namespace}/{name} 10.0.0.{last}{extra}"),
            "headless" => format!("headless {namespace}/{name} a=10.1.0.{last}"),
            _ => format!("headless {namespace}/{name}"),
        });
    prop::collection::vec(one, 0..14).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// The resolver decides the same with and without a trace, and `answer` returns the result of the rule that wins in
    /// the trace.
    #[test]
    fn tracing_does_not_change_the_outcome(lines in random_cluster(), caller in prop::option::of(prop::sample::select(vec!["web", "orders", "ix-app", "dev"]))) {
        let zone = cluster(&lines, &[]);
        let namespace = caller.map(|caller| zone.settings.namespace_name(caller).unwrap());
        let caller = namespace.as_ref().map_or(Caller::Unknown, Caller::Namespace);
        let labels = ["api", "web", "mysql", "mysql-default", "redis", "app", "a", "b", "dev", "com", "svc", "orders", "_http", "_tcp"];
        let mut names: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        names.extend(labels.iter().flat_map(|x| labels.iter().map(move |y| format!("{x}.{y}"))));
        names.extend(labels.iter().flat_map(|y| ["a.api", "a.web", "_http._tcp", "api.web"].map(|x| format!("{x}.{y}"))));
        names.extend(labels.iter().map(|x| format!("{x}.web.svc.cluster.local")));
        for text in names {
            let wire = callsign::wire::name_from_text(&text).unwrap();
            let name = Name::parse(&wire, 0).unwrap();
            let trace = Recorded::default();
            let traced = resolve(&LazyCaller::new(&zone, caller), &name, &trace);
            let untraced = resolve(&LazyCaller::new(&zone, caller), &name, NoTrace);
            prop_assert_eq!(kind(&traced), kind(&untraced), "{}", &text);
            let reply = reply(&zone, caller, &query(&format!("{text} A"), None), Limit::Stream).unwrap();
            match traced {
                Outcome::Found(Node::Service(service), _) => {
                    prop_assert_eq!(reply[3] & 15, 0);
                    prop_assert_eq!(usize::from(u16::from_be_bytes([reply[6], reply[7]])), service.a.octets().len() / 16);
                    // The last rule that found anything won.
                    let steps = trace.into_steps();
                    let won = steps.iter().rev().find(|step| matches!(step.result, StepResult::Found(_))).unwrap();
                    let StepResult::Found(what) = &won.result else { unreachable!() };
                    prop_assert!(what.starts_with(&service.name.text()), "{}: {} is not {}", &text, what, service.name.text());
                }
                Outcome::Found(..) => prop_assert_eq!(reply[3] & 15, 0),
                Outcome::Missing(_) => prop_assert_eq!(reply[3] & 15, 3),
                Outcome::NotOurs => prop_assert_eq!(reply[3] & 15, 5),
                Outcome::NotReady => prop_assert!(false),
            }
        }
    }
}

fn kind(outcome: &Outcome<'_>) -> String {
    match outcome {
        Outcome::Found(Node::Service(service), space) => format!("{} {space:?}", service.name.text()),
        Outcome::Found(Node::Endpoint(endpoint), _) => format!("endpoint of {}", endpoint.service.name.text()),
        Outcome::Found(Node::Port(service, _), _) => format!("port of {}", service.name.text()),
        Outcome::Found(node, _) => format!("{:?}", std::mem::discriminant(node)),
        Outcome::Missing(space) => format!("missing {space:?}"),
        Outcome::NotOurs => "not ours".to_owned(),
        Outcome::NotReady => "not ready".to_owned(),
    }
}

/// Pods come and go; the address that resolvers keep is the Service's.
#[test]
fn the_name_server_is_the_service_that_leads_to_it() {
    let objects = r#"
kind: Service
metadata: {name: dns, namespace: kube-system}
spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, "fd00::10"], ports: [{port: 53, protocol: UDP}]}
---
kind: EndpointSlice
metadata: {name: dns-1, namespace: kube-system, labels: {kubernetes.io/service-name: dns}}
addressType: IPv4
endpoints: [{addresses: [10.244.0.2]}, {addresses: [10.244.1.2]}]
---
kind: Service
metadata: {name: any, namespace: a-tenant}
spec: {clusterIP: 10.96.0.66}
---
kind: EndpointSlice
metadata: {name: any-1, namespace: a-tenant, labels: {kubernetes.io/service-name: any}}
addressType: IPv4
endpoints: [{addresses: [10.244.0.2]}, {addresses: [10.244.0.9]}]
---
kind: Service
metadata: {name: headless, namespace: kube-system}
spec: {clusterIP: None}
---
kind: EndpointSlice
metadata: {name: headless-1, namespace: kube-system, labels: {kubernetes.io/service-name: headless}}
addressType: IPv4
endpoints: [{addresses: [10.244.0.2]}]
"#;
    let cases: [(&str, Option<&str>, &[&str]); 4] = [
        ("a pod behind a Service", Some("10.244.0.2"), &["10.96.0.10", "fd00::10"]),
        ("a pod that only another namespace's Service claims", Some("10.244.0.9"), &["192.0.2.53"]),
        ("a pod behind no Service", Some("10.244.7.7"), &["192.0.2.53"]),
        ("not a pod", None, &["192.0.2.53"]),
    ];
    for (case, address, expected) in cases {
        let mut zone = (*common::zone(objects, &["--advertise", "192.0.2.53"])).clone();
        let own_pod = address.map(|address| OwnPod {
            namespace: zone.settings.namespace_name("kube-system").unwrap(),
            addresses: vec!["2001:db8::1".parse().unwrap(), address.parse().unwrap()],
        });
        zone.settings = Arc::new(Settings { own_pod, ..(*zone.settings).clone() });
        let data = |question: &str, section: &str| -> Vec<String> {
            let text = common::ask(&zone, Caller::Unknown, question);
            let lines = text.lines().skip(1).filter(|line| line.starts_with(section) && !line.starts_with("soa "));
            lines.filter_map(|line| line.rsplit(' ').next().map(str::to_owned)).collect()
        };
        let own = [data("ns.dns.cluster.local A", ""), data("ns.dns.cluster.local AAAA", "")].concat();
        assert_eq!(own, expected, "{case}");
        assert_eq!(data("cluster.local NS", "glue "), expected, "{case}, beside NS");
    }
}
