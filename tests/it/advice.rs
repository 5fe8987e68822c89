//! What the commands say about mistakes: findings of `doctor`, names that people paste into `explain`, links of `env`.

use std::path::Path;
use std::time::{Duration, Instant};

use callsign::report::explain::Pasted;
use callsign::report::lint::Lint;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::common::process::{Server, run};
use crate::common::scripted::{Api, WatchListSupport};
use crate::common::{Scratch, process};

fn callsign(arguments: &[&str]) -> (i32, String) {
    let output = run(arguments);
    let text = [output.stdout, output.stderr].map(|octets| String::from_utf8(octets).unwrap()).concat();
    (output.status.code().unwrap(), text)
}

/// Runs `callsign doctor` on a path; returns its status and its findings as `severity code object: what | fix`.
fn doctor(path: &Path, more: &[&str]) -> (i32, Vec<String>) {
    let all: Vec<&str> =
        ["doctor", "-o", "json", "--manifests", path.to_str().unwrap()].iter().chain(more).copied().collect();
    let output = run(&all);
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let line = |finding: &Value| {
        let [severity, code, object, what, fix] =
            ["severity", "code", "object", "what", "fix"].map(|key| text(finding, key));
        format!("{severity} {code} {object}: {what} | {fix}")
    };
    (output.status.code().unwrap(), findings.iter().map(line).collect())
}

const DEPLOYMENT: &str = "---\nkind: Deployment\nmetadata: {name: api, namespace: web}\nspec:\n  template:\n    metadata: {labels: {app: api}}\n    spec: {containers: [{name: api, ports: [{name: http, containerPort: 8080}]}]}\n";

fn service(name: &str, spec: &str) -> String {
    format!("---\nkind: Service\nmetadata: {{name: {name}, namespace: web}}\nspec: {{{spec}}}\n")
}

#[test]
fn doctor_finds_mistakes_in_manifests() {
    let ip = "clusterIP: 10.96.1.1";
    let cases: Vec<(&str, String, &str)> = vec![
        ("a selector that matches", service("api", "clusterIP: 10.96.1.1, selector: {app: api}, ports: [{port: 80, targetPort: http}]") + DEPLOYMENT, ""),
        ("Services alone", service("api", "clusterIP: 10.96.1.1, selector: {app: apy}"), ""),
        (
            "a selector that matches nothing",
            service("api", "clusterIP: 10.96.1.1, selector: {app: apy}") + DEPLOYMENT,
            "error selector-matches-nothing web/api: its selector app=apy matches no pod in its namespace (PATH:2) | did you mean app=api?",
        ),
        (
            "an address that is none",
            service("api", "clusterIP: 10.96.1.999"),
            "error invalid-object web/api: this Service (PATH:2) is not valid: '10.96.1.999' is not an IP address | correct the object or the annotation",
        ),
        (
            "a named targetPort that no container has",
            service("api", "clusterIP: 10.96.1.1, selector: {app: api}, ports: [{port: 80, targetPort: htp}]") + DEPLOYMENT,
            "error target-port-missing web/api: its targetPort htp is not a port of the selected pods (PATH:2) | the containers have http (8080)",
        ),
        (
            "a number that no container has",
            service("api", "clusterIP: 10.96.1.1, selector: {app: api}, ports: [{port: 80}]") + DEPLOYMENT,
            "warning target-port-missing web/api: its targetPort 80",
        ),
        (
            "slices of a missing Service",
            service("api", ip) + "---\nkind: EndpointSlice\nmetadata: {name: apy-1, namespace: web, labels: {kubernetes.io/service-name: apy}}\naddressType: IPv4\nendpoints: []\n",
            "warning slice-without-service web/apy-1: this EndpointSlice (PATH:6) belongs to Service web/apy, which does not exist",
        ),
        (
            "an ExternalName to nothing in the cluster",
            service("api", ip) + &service("out", "type: ExternalName, externalName: apy.web.svc.cluster.local."),
            "error external-name-missing web/out: its externalName apy.web.svc.cluster.local does not exist in the cluster (PATH:6) | did you mean api.web?",
        ),
        (
            "a misspelt annotation",
            "kind: Service\nmetadata: {name: api, annotations: {callsign.dev/alais: x}}\n".to_owned(),
            "error misspelt-annotation default/api: it has an unknown annotation 'callsign.dev/alais' (PATH:1) | write callsign.dev/alias",
        ),
        (
            "a misspelt domain of an annotation",
            "kind: Namespace\nmetadata: {name: web, annotations: {calsign.dev/visible-to: x}}\n".to_owned(),
            "error misspelt-annotation web: it has an unknown annotation 'calsign.dev/visible-to' (PATH:1) | write callsign.dev/visible-to",
        ),
        (
            "a misspelt field",
            service("api", "clusterip: 10.96.1.1"),
            "error misspelt-field web/api: spec has an unknown field 'clusterip' (PATH:2) | write 'clusterIP'",
        ),
        (
            "a misspelt kind",
            service("api", ip) + "---\nkind: service\nmetadata: {name: b}\n",
            "error misspelt-field default/b: this object (PATH:6) has the kind 'service' | write kind: Service",
        ),
        (
            "a misspelt kind: the field",
            service("api", ip) + "---\nKind: Service\nmetadata: {name: b}\n",
            "warning misspelt-field default/b: this object (PATH:6) has no kind | write 'kind' instead of 'Kind'",
        ),
        (
            "the same Service twice",
            service("api", ip) + &service("api", ip),
            "error declared-twice web/api: this Service is declared in PATH:2 and again in PATH:6 | remove one of them",
        ),
        (
            "one address for two",
            service("api", ip) + &service("db", ip),
            "error same-cluster-ip web/api, web/db: they have the same clusterIP 10.96.1.1",
        ),
        (
            "a name that Kubernetes refuses",
            service("My_Api", ip),
            "error invalid-name web/My_Api: Kubernetes would refuse the name 'My_Api' (PATH:2) | use at most 63 lower-case",
        ),
        (
            "a port of a link that the target does not have",
            "kind: Service\nmetadata: {name: api, annotations: {callsign.dev/links: 'db:99'}}\nspec: {clusterIP: 10.96.1.1}\n---\nkind: Service\nmetadata: {name: db}\nspec: {clusterIP: 10.96.1.2, ports: [{port: 5432, name: pg}]}\n".to_owned(),
            "error link-to-missing-port default/api: it links to db:99, which does not have that port; it has 5432 (pg)",
        ),
        (
            "endpoints that are not ready, and since when",
            service("api", ip) + "---\nkind: EndpointSlice\nmetadata: {name: api-1, namespace: web, labels: {kubernetes.io/service-name: api}}\naddressType: IPv4\nendpoints: [{addresses: [10.1.0.1], conditions: {ready: false}, targetRef: {kind: Pod, name: api-0}}]\n---\nkind: Pod\nmetadata: {name: api-0, namespace: web}\nstatus:\n  podIP: 10.1.0.1\n  conditions: [{type: Ready, status: 'False', lastTransitionTime: '2026-01-02T03:04:05Z'}]\n  containerStatuses: [{state: {waiting: {reason: CrashLoopBackOff}}}]\n",
            "warning no-ready-endpoint web/api: none of its 1 endpoints is ready: pod api-0: CrashLoopBackOff since 2026-01-02T03:04:05Z",
        ),
        (
            "a selector as of a Deployment",
            service("api", "clusterIP: 10.96.1.1, selector: {matchLabels: {app: api}}"),
            "error invalid-selector web/api: its selector has 'matchLabels', which is not a label with a text (PATH:2)",
        ),
        (
            "a misspelt type",
            service("api", "clusterIP: 10.96.1.1, type: Loadbalancer"),
            "error misspelt-field web/api: its type 'Loadbalancer' does not exist (PATH:2) | write LoadBalancer",
        ),
        (
            "ports without names",
            service("api", "clusterIP: 10.96.1.1, ports: [{port: 80}, {port: 81}]"),
            "error ports-without-names web/api: its 2 ports do not all have a name of their own (PATH:2)",
        ),
        (
            "a misspelt port of a container",
            service("api", "clusterIP: 10.96.1.1, selector: {app: api}")
                + &DEPLOYMENT.replace("containerPort", "containerport"),
            "error misspelt-field web/api: a container's port has an unknown field 'containerport' (PATH:6) | write 'containerPort'",
        ),
        (
            "a misspelt kind of workload",
            service("api", ip) + &DEPLOYMENT.replace("kind: Deployment", "kind: Deploymnet"),
            "error misspelt-field web/api: this object (PATH:6) has the kind 'Deploymnet' | write kind: Deployment",
        ),
        (
            "a namespace that is not declared",
            service("api", ip) + "---\nkind: Namespace\nmetadata: {name: wbe}\n",
            "warning undeclared-namespace web: Services are in it, but no manifest declares it (PATH:2) | did you mean wbe?",
        ),
        ("broken YAML", service("api", ip) + "---\nkind: [\n", "error unreadable PATH:6: "),
        ("no YAML at all", "hello\n".to_owned(), "error unreadable PATH:1: "),
        ("an empty file", "# nothing\n".to_owned(), "error no-services PATH: it has no Services"),
    ];
    for (case, text, expected) in cases {
        let scratch = Scratch::folder("advice");
        let path = scratch.file("cluster.yaml", &text);
        let (status, found) = doctor(&path, &[]);
        let expected = expected.replace("PATH", path.to_str().unwrap());
        match expected.as_str() {
            "" => assert_eq!((status, found.len()), (0, 0), "{case}: {found:?}"),
            expected => {
                assert!(found.iter().any(|line| line.starts_with(expected)), "{case}: {found:#?}");
                assert!(found.len() <= 2, "{case}: {found:#?}");
                assert_eq!(status == 1, expected.starts_with("error"), "{case}");
            }
        }
    }
}

#[test]
fn doctor_is_not_content_with_what_it_could_not_read() {
    let scratch = Scratch::folder("unread");
    scratch.file("good.yaml", &service("api", "clusterIP: 10.96.1.1"));
    for (case, name, octets) in
        [("binary", "b.json", &[0u8, 159, 146, 150][..]), ("another encoding", "l.yaml", b"kind: Service\n# caf\xe9\n")]
    {
        std::fs::write(scratch.0.join(name), octets).unwrap();
        let (status, found) = doctor(&scratch.0, &[]);
        assert!(
            status == 1 && found.iter().any(|line| line.contains(name) && line.contains("UTF-8")),
            "{case}: {found:?}"
        );
        std::fs::remove_file(scratch.0.join(name)).unwrap();
    }
    assert_eq!(doctor(&scratch.0, &[]), (0, Vec::new()));
    let (status, found) = doctor(&scratch.0, &["-n", "wbe"]);
    assert!(
        status == 1 && found[0].contains("unknown-namespace wbe") && found[0].contains("did you mean web?"),
        "{found:?}"
    );
    let empty = Scratch::folder("empty");
    let (status, found) = doctor(&empty.0, &[]);
    assert!(status == 1 && found[0].starts_with("error no-services"), "{found:?}");
    let (status, found) = doctor(&empty.0.join("missing"), &[]);
    assert!(status == 1 && found[0].contains("No such file"), "{found:?}");
}

#[test]
fn doctor_reads_a_cluster_and_says_what_it_may_not_list() {
    let api = Api::start(WatchListSupport::Yes);
    api.put(json!({"kind": "Namespace", "metadata": {"name": "web"}}));
    api.put(json!({"kind": "Service", "metadata": {"name": "api", "namespace": "web"},
        "spec": {"clusterIP": "10.96.0.10", "selector": {"app": "apy"}, "ports": [{"port": 80}]}}));
    api.put(json!({"kind": "Pod", "metadata": {"name": "api-0", "namespace": "web", "labels": {"app": "api"}},
        "spec": {"containers": [{"ports": [{"containerPort": 80}]}]}, "status": {"podIP": "10.1.0.1"}}));
    let scratch = Scratch::folder("kubeconfig");
    let kubeconfig = scratch.file("config", &api.kubeconfig());
    let (status, text) = callsign(&["doctor", "--kubeconfig", kubeconfig.to_str().unwrap()]);
    assert!(status == 1 && text.contains("its selector app=apy matches no pod") && text.contains("app=api?"), "{text}");
}

#[test]
fn doctor_watches_and_asks_a_running_server() {
    let scratch = Scratch::folder("watch");
    let path = scratch.file("api.yaml", &service("api", "clusterIP: 10.96.1.1"));
    let mut child = process::callsign()
        .args(["doctor", "--watch", "--manifests", path.to_str().unwrap()])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "1 Service: 0 errors, 0 warnings");
    scratch.file("api.yaml", &service("api", "clusterip: 10.96.1.1"));
    assert_eq!(lines.next().unwrap().unwrap(), "");
    assert!(lines.next().unwrap().unwrap().starts_with("--- 2"), "the time of the next report");
    assert!(lines.next().unwrap().unwrap().contains("misspelt-field"));
    child.kill().unwrap();
    child.wait().unwrap();
    // A server is asked for its source, its upstreams and its clients.
    let server = Server::start(&["--manifests", path.to_str().unwrap(), "--upstream", "127.0.0.9"], None);
    let (status, text) = callsign(&["doctor", "--server", &server.admin.to_string()]);
    assert_eq!(status, 0, "{text}");
    for part in ["The server has 1 Services", "manifests: last message", "upstream 127.0.0.9:53: in use"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    std::fs::remove_file(&path).unwrap();
    let start = Instant::now();
    loop {
        let (status, text) = callsign(&["doctor", "--server", &server.admin.to_string()]);
        if status == 1 && text.contains("source-failing") && text.contains("No such file") {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{text}");
    }
}

#[test]
fn explain_takes_what_people_paste() {
    for (case, arguments, status, words) in [
        (
            "a URL",
            "http://api.web:3000/users?id=1",
            0,
            vec!["api.web. 5 A 10.96.10.20", "port 3000 (http) is a port of Service web/api"],
        ),
        (
            "a URL of another port",
            "https://user:secret@api.web/x",
            1,
            vec!["port 443 is not a port of Service web/api; it has 3000 (http)"],
        ),
        (
            "a name with a port",
            "web.web:80",
            0,
            vec!["port 80 (http) is a port of Service web/web, which leads to port 3000 of its pods"],
        ),
        ("an address", "10.96.10.20", 0, vec!["PTR api.web.svc.cluster.local."]),
        ("an IPv6 address with a port", "[fd00::1]:53", 1, vec!["1.0.0.0", "ip6.arpa PTR", "NXDOMAIN"]),
        ("an IPv6 address alone", "fd00::1", 1, vec!["ip6.arpa PTR"]),
        (
            "a misspelt namespace, which would be forwarded",
            "scheduler.backoffice",
            1,
            vec!["FORWARDED", "did you mean", "scheduler.backoffice-workers"],
        ),
        (
            "a misspelt domain, which would be forwarded",
            "api.web.svc.cluster.locl",
            1,
            vec!["FORWARDED", "  api.web.svc.cluster.local\n"],
        ),
        ("swapped letters", "scehduler.backoffice-workers", 1, vec!["  scheduler.backoffice-workers\n"]),
        ("a misspelt alias", "bakend --from web", 1, vec!["  backend\n"]),
        ("a misspelt port", "_htp._tcp.api.web", 1, vec!["  _http._tcp.api.web\n"]),
        ("the name of a port without SRV", "_http._tcp.api.web", 0, vec!["ask with -t SRV"]),
        ("a database of another namespace", "mysql --from backoffice-workers", 1, vec!["  mysql.web\n"]),
        ("an app, for a caller that is none", "sab --from web", 1, vec!["  sab-sabnzbd.ix-sab\n"]),
        ("nothing", "http://", 64, vec!["'http://' has no name in it"]),
        ("a name of the internet", "www.example.com", 0, vec!["FORWARDED"]),
        (
            "an endpoint that is not ready",
            "cache.web:6379",
            0,
            vec!["10.244.3.10 is not ready", "port 6379 (redis) is a port"],
        ),
    ] {
        let words_given: Vec<&str> = arguments.split(' ').collect();
        let all: Vec<&str> = [&["explain"], &words_given[..], &["--manifests", "deploy/demo"]].concat();
        let (found, text) = callsign(&all);
        assert_eq!(found, status, "{case}: {text}");
        for word in words {
            assert!(text.contains(word), "{case}: no '{word}' in\n{text}");
        }
        let asked = words_given[0];
        assert!(!text.contains(&format!("\n  {asked}\n")), "{case}: it suggests the name that was asked\n{text}");
    }
}

#[test]
fn explain_tells_services_without_an_answer_apart() {
    let objects = [
        service("out", "type: ExternalName, externalName: 192.0.2.1"),
        service("db", "clusterIP: None"),
        service("api", "clusterIP: 10.96.1.1"),
        "---\nkind: EndpointSlice\nmetadata: {name: api-1, namespace: web, labels: {kubernetes.io/service-name: api}}\naddressType: IPv4\nendpoints: [{addresses: [10.1.0.1], conditions: {ready: false, terminating: true}, targetRef: {kind: Pod, name: api-0}}]\n".to_owned(),
    ]
    .concat();
    let scratch = Scratch::folder("answerless");
    let path = scratch.file("objects.yaml", &objects);
    for (name, words) in [
        ("out.web", vec!["Service out.web is an ExternalName to an address"]),
        ("db.web", vec!["Service db.web is headless, and has no ready endpoint"]),
        (
            "api.web",
            vec![
                "none of the 1 endpoints of Service web/api is ready",
                "10.1.0.1 (pod api-0) is not ready: it is being deleted",
            ],
        ),
    ] {
        let (status, text) = callsign(&["explain", name, "--manifests", path.to_str().unwrap()]);
        assert_eq!(status, 1, "{text}");
        for word in words {
            assert!(text.contains(word), "{name}: no '{word}' in\n{text}");
        }
    }
}

#[test]
fn env_takes_ports_and_schemes() {
    let objects = "kind: Service\nmetadata: {name: app}\n---\nkind: Service\nmetadata: {name: ui}\nspec: {clusterIP: 10.96.1.1, ports: [{name: metrics, port: 9100}, {name: main, port: 8989}]}\n---\nkind: Service\nmetadata: {name: pay}\nspec: {type: ExternalName, externalName: api.example.com}\n";
    let scratch = Scratch::folder("schemes");
    let path = scratch.file("objects.yaml", objects);
    let env = |arguments: &[&str]| {
        let all =
            [&["env", "--for", "default/app", "--style", "convox", "--manifests", path.to_str().unwrap()], arguments];
        callsign(&all.concat())
    };
    for (case, arguments, status, expected) in [
        ("the first port", vec!["--link", "ui"], 0, "UI_URL=tcp://ui.default.svc.cluster.local:9100\n"),
        ("a port by number", vec!["--link", "ui:8989"], 0, "UI_URL=http://ui.default.svc.cluster.local:8989\n"),
        ("a port by name", vec!["--link", "ui:main"], 0, "UI_URL=http://ui.default.svc.cluster.local:8989\n"),
        ("a URL", vec!["--link", "http://ui:8989/x"], 0, "UI_URL=http://ui.default.svc.cluster.local:8989\n"),
        (
            "a scheme",
            vec!["--link", "ui", "--scheme", "https"],
            0,
            "UI_URL=https://ui.default.svc.cluster.local:9100\n",
        ),
        (
            "an ExternalName with a port",
            vec!["--link", "pay:443"],
            0,
            "PAY_URL=https://pay.default.svc.cluster.local\n",
        ),
        (
            "an ExternalName without",
            vec!["--link", "pay"],
            1,
            "callsign: app links to service: pay which does not expose any ports; link to NAME:PORT\n",
        ),
        (
            "a port that is not there",
            vec!["--link", "ui:1"],
            1,
            "callsign: app links to service: ui which does not have port 1; it has 9100 (metrics), 8989 (main)\n",
        ),
    ] {
        assert_eq!(env(&arguments), (status, expected.to_owned()), "{case}");
    }
    assert_eq!(env(&["--link", "ui", "--scheme", "http://"]).0, 64);
}

proptest! {
    #[test]
    fn whatever_is_pasted_is_taken_apart_without_a_panic(text in "\\PC{0,80}") {
        let pasted = Pasted::parse(&text);
        prop_assert!(pasted.is_address || text.contains(&pasted.name));
    }

    #[test]
    fn any_object_can_be_examined(object in object()) {
        let mut lint = Lint::default();
        lint.add("any.yaml:1", &object);
        lint.add("any.yaml:2", &json!({"kind": "List", "items": [object]}));
        let (findings, _) = lint.findings(&["cluster.local".to_owned()]);
        // Of each object, only so many findings are listed, and so much of it is quoted.
        prop_assert!(findings.len() <= 60, "{}", findings.len());
        for finding in findings {
            prop_assert!(finding.what.len() < 1000, "{}", finding.what);
        }
    }
}

/// Objects of any shape, with the names of fields that have a meaning.
fn object() -> impl Strategy<Value = Value> {
    let words = [
        "kind",
        "Service",
        "EndpointSlice",
        "Pod",
        "Deployment",
        "metadata",
        "name",
        "namespace",
        "labels",
        "annotations",
        "spec",
        "selector",
        "ports",
        "port",
        "targetPort",
        "clusterIP",
        "clusterIPs",
        "externalName",
        "template",
        "containers",
        "endpoints",
        "conditions",
        "status",
        "callsign.dev/alais",
        "é",
        "",
    ];
    let word = prop::sample::select(words.to_vec());
    let leaf = prop_oneof![word.clone().prop_map(Value::from), any::<i64>().prop_map(Value::from), Just(Value::Null)];
    let any = leaf.prop_recursive(5, 64, 8, move |inner| {
        let key = prop::sample::select(words.to_vec());
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.prop_map(str::to_owned), inner, 0..8)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    });
    (any, word).prop_map(|(mut object, kind)| {
        if let Some(fields) = object.as_object_mut() {
            fields.insert("kind".to_owned(), kind.into());
        }
        object
    })
}
