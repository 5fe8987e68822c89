//! The commands as users run them. docs/commands.md consists of the program's help and of the commands' output on the
//! demo. A test compares it; CALLSIGN_WRITE_DOCS=1 rewrites it.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::common::process::{Server, run};
use crate::common::{self, Scratch, exchange, process};
use hickory_proto::op::Message;
use serde_json::Value;

const DEMO: &str = "--manifests deploy/demo";

/// The sections of docs/commands.md: a command, its introduction, and command lines to run as examples.
const SHOWN: &[(&str, &str, &[&str])] = &[
    (
        "services",
        "Lists the domain names and ports of Services. Ports are shown as `service:target`, or as one number if both are equal.",
        &[
            "callsign services -n web --manifests deploy/demo",
            "callsign services -A -o wide --manifests deploy/demo",
            "callsign services sonarr -A -o yaml --manifests deploy/demo",
        ],
    ),
    (
        "dns",
        "Lists the domain names of installed apps, in the format of app catalogues.",
        &["callsign dns traefik sab --manifests deploy/demo"],
    ),
    (
        "name",
        "Prints the domain name of an app's Service, whether or not the app is installed.",
        &["callsign name --app sab --chart sabnzbd", "callsign name --app traefik --chart traefik --service tcp"],
    ),
    (
        "explain",
        "Shows each rule in order, with the name it looked for and its result. If a name has no answer, it suggests similar\n\
         names.",
        &[
            "callsign explain api --from web --manifests deploy/demo",
            "callsign explain mysql --from web --manifests deploy/demo",
            "callsign explain apo --from web --manifests deploy/demo",
            "callsign explain ledger.backoffice-workers --from web --manifests deploy/demo",
        ],
    ),
    (
        "env",
        "Prints the variables with which a Service reaches its links, from its annotation `callsign.dev/links` or from\n\
         `--link`.",
        &[
            "callsign env --for web/web --manifests deploy/demo",
            "callsign env --for web/web --link api --style cloud66 --manifests deploy/demo",
            "callsign env --for web/web --link api --style kubernetes --manifests deploy/demo",
            "callsign env --for web/web --link database2 --manifests deploy/demo",
        ],
    ),
    (
        "doctor",
        "Reports problems with the names of a cluster, why they matter and how to fix them. The exit status is 1 if one of\n\
         them is an error.",
        &["callsign doctor --manifests deploy/demo"],
    ),
    (
        "resolvconf",
        "Prints a resolv.conf for a container. Callsign needs no search list; `--search` adds one for clients that expect it.",
        &["callsign resolvconf --server 10.96.0.53", "callsign resolvconf --server 10.96.0.53 --search -n web"],
    ),
    (
        "serve",
        "Runs the server. Flags can also come from a file (`--config`), or from the environment variables in their help\n\
         texts.",
        &[],
    ),
    ("completion", "Prints a completion script for a shell.", &[]),
    ("man", "Prints manual pages, generated from the same source as the help.", &[]),
];

fn output(line: &str) -> (i32, String, String) {
    let words: Vec<&str> = line.split(' ').skip(1).collect();
    let output = run(&words);
    let text = |octets: Vec<u8>| String::from_utf8(octets).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Counts the lines of an error, without those on which the parser of flags lists values and suggestions.
fn lines_of(error: &str) -> usize {
    error.lines().filter(|line| !line.starts_with("  ")).count()
}

#[test]
fn the_command_reference_matches_the_program() {
    let mut text = "# Commands\n\n\
    All commands belong to one program, `callsign`. It reads the cluster from `--manifests PATH` (a file, a folder, or `-`),\n\
    from `--kubeconfig FILE`, or, in a pod, with the pod's service account. Installed as `kubectl-callsign` it is a kubectl\n\
    plugin and uses the cluster of `KUBECONFIG` or `~/.kube/config`. Exit statuses: 0 success, 1 the answer is \"no\", 64 bad\n\
    usage, 69 the source cannot be reached, 78 bad configuration. Each error is one line on standard error.\n\n\
    The admin address of a server serves the same structures: `/api/v1/services?namespace=NS` and\n\
    `/api/v1/explain?name=NAME&from=NS&type=TYPE`. Clients on loopback see everything, except in a sidecar (`--namespace`),\n\
    where the client may be the application. Other clients see what their own address may resolve.\n\n\
    A test compares this document with the program's help and output.\n"
        .to_owned();
    for (command, about, lines) in SHOWN {
        let _ = write!(text, "\n## callsign {command}\n\n{about}\n\n");
        if !lines.is_empty() {
            text += "```console\n";
            for (index, line) in lines.iter().enumerate() {
                let (_, out, error) = output(line);
                let _ = write!(text, "{}$ {line}\n{out}{error}", if index > 0 { "\n" } else { "" });
            }
            text += "```\n\n";
        }
        let (status, help, _) = output(&format!("callsign {command} --help"));
        assert_eq!(status, 0);
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        let _ = writeln!(text, "```text\n{}\n```", help.join("\n").trim_end());
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/commands.md");
    if std::env::var_os("CALLSIGN_WRITE_DOCS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    for (index, (written, printed)) in written.lines().zip(text.lines()).enumerate() {
        assert_eq!(written, printed, "docs/commands.md:{}: run the test with CALLSIGN_WRITE_DOCS=1", index + 1);
    }
    assert_eq!(written.len(), text.len(), "docs/commands.md: run the test with CALLSIGN_WRITE_DOCS=1");
}

/// Queries the server from the given client address. Returns the rcode and the sorted answers.
fn ask_from(server: &Server, client: Ipv4Addr, question: &str) -> (String, Vec<String>) {
    let socket = exchange::udp_socket_from(client.into(), server.dns);
    let reply = exchange::exchange(&socket, &common::query(question, Some(1232))).unwrap();
    let message = Message::from_vec(&reply).unwrap();
    let mut answers: Vec<String> = message
        .answers
        .iter()
        .map(|record| format!("{} {} {} {}", record.name, record.ttl, record.record_type(), record.data))
        .collect();
    answers.sort();
    (format!("{:?}", message.metadata.response_code).to_uppercase(), answers)
}

/// A record without its TTL and class, with single spaces.
fn words(line: &str) -> String {
    let words = line.split_whitespace().enumerate().filter(|(at, word)| *at != 1 && *word != "IN");
    words.map(|(_, word)| word).collect::<Vec<_>>().join(" ")
}

/// The answers that dig gets to the same query.
fn dig_from(dig: &str, server: &Server, client: Ipv4Addr, name: &str, qtype: &str) -> Vec<String> {
    let output = std::process::Command::new(dig)
        .args(["+tries=1", "+time=5", "+noall", "+answer", "-b", &client.to_string()])
        .args(["-p", &server.dns.port().to_string(), &format!("@{}", server.dns.ip()), &format!("{name}."), qtype])
        .output()
        .unwrap();
    let mut answers: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(words).collect();
    answers.sort();
    answers
}

#[test]
fn explain_agrees_with_the_server_for_every_name_and_every_namespace() {
    let services: Vec<Value> =
        serde_json::from_str(&output(&format!("callsign services -A -o json {DEMO}")).1).unwrap();
    let field = |service: &Value, name: &str| service[name].as_str().unwrap().to_owned();
    let mut namespaces: Vec<String> = services.iter().map(|service| field(service, "namespace")).collect();
    namespaces.sort();
    namespaces.dedup();
    let callers: Vec<(Ipv4Addr, String)> = namespaces
        .iter()
        .enumerate()
        .map(|(index, name)| (Ipv4Addr::new(127, 0, 1, 1 + index as u8), name.clone()))
        .collect();
    let flags: Vec<String> = callers.iter().map(|(address, name)| format!("--callers={address}/32={name}")).collect();
    let all: Vec<&str> = ["--manifests", "deploy/demo"].into_iter().chain(flags.iter().map(String::as_str)).collect();
    let server = Server::start(&all, None);
    let mut names: Vec<String> = ["nothing", "mysql", "backend", "cache-0.cache.web.svc.cluster.local", "10.96.10.20"]
        .map(str::to_owned)
        .to_vec();
    names[4] = "20.10.96.10.in-addr.arpa".to_owned();
    for service in &services {
        names.extend([field(service, "service"), field(service, "short"), field(service, "domain")]);
        names.push(format!("{}.{}", field(service, "service"), field(service, "namespace")));
    }
    names.sort();
    names.dedup();
    let mut found = 0;
    std::thread::scope(|scope| {
        let threads: Vec<_> = callers
            .iter()
            .map(|(address, namespace)| {
                let (server, names) = (&server, &names);
                scope.spawn(move || {
                    let mut found = 0;
                    for name in names {
                        let qtype = if name.ends_with("arpa") { "PTR" } else { "A" };
                        let (_, explanation, _) = output(&format!(
                            "callsign explain {name} --from {namespace} --type {qtype} -o json {DEMO}"
                        ));
                        let explanation: Value = serde_json::from_str(&explanation).unwrap();
                        let mut answers: Vec<String> = explanation["answers"]
                            .as_array()
                            .unwrap()
                            .iter()
                            .map(|answer| answer.as_str().unwrap().to_owned())
                            .collect();
                        answers.sort();
                        let answered = ask_from(server, *address, &format!("{name}. {qtype}"));
                        assert_eq!(
                            (explanation["rcode"].as_str().unwrap().to_owned(), answers),
                            answered,
                            "{name} from {namespace}"
                        );
                        if let Ok(dig) = std::env::var("CALLSIGN_DIG") {
                            let printed = dig_from(&dig, server, *address, name, qtype);
                            assert_eq!(
                                printed,
                                answered.1.iter().map(|line| words(line)).collect::<Vec<_>>(),
                                "{name} from {namespace}"
                            );
                        }
                        found += usize::from(!answered.1.is_empty());
                    }
                    found
                })
            })
            .collect();
        found = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    });
    assert!(found > 150, "{found} answers");
}

#[test]
fn env_turns_links_into_variables_or_one_line_errors() {
    let scratch = Scratch::folder("links");
    let cluster = "kind: Service\nmetadata: {name: web, namespace: web, annotations: {callsign.dev/links: 'api, db.other'}}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n---\n\
                   kind: Service\nmetadata: {name: api, namespace: web}\nspec: {clusterIP: 10.96.0.2, ports: [{name: https, port: 8443}]}\n---\n\
                   kind: Service\nmetadata: {name: db, namespace: other}\nspec: {clusterIP: None, ports: [{name: postgres, port: 5432, targetPort: 6432}]}\n---\n\
                   kind: Service\nmetadata: {name: secret, namespace: other, annotations: {callsign.dev/visible-to: namespace}}\nspec: {clusterIP: 10.96.0.4, ports: [{port: 1}]}\n---\n\
                   kind: Service\nmetadata: {name: mute, namespace: web}\nspec: {clusterIP: 10.96.0.5}\n---\n\
                   kind: Service\nmetadata: {name: web, namespace: other}\nspec: {clusterIP: 10.96.0.6, ports: [{port: 443}]}\n";
    let cluster = scratch.file("cluster.yaml", cluster);
    let cases: &[(&str, &str, i32, &str, &str)] = &[
        (
            "links of the annotation",
            "--for web/web --style convox",
            0,
            "API_URL=https://api.web.svc.cluster.local:8443\nDB_URL=postgres://db.other.svc.cluster.local:6432\n",
            "",
        ),
        (
            "the default port of a scheme is omitted",
            "--for web/api --link web --style convox",
            0,
            "WEB_URL=http://web.web.svc.cluster.local\n",
            "",
        ),
        (
            "a repeated link is printed once",
            "--for web/api --link web --link web --style convox",
            0,
            "WEB_URL=http://web.web.svc.cluster.local\n",
            "",
        ),
        (
            "a link to a missing Service",
            "--for web/web --link database2",
            1,
            "",
            "web links to service: database2 which does not exist\n",
        ),
        (
            "a link to a hidden Service",
            "--for web/web --link secret.other",
            1,
            "",
            "web links to service: secret.other which does not exist\n",
        ),
        (
            "a link to a Service without ports",
            "--for web/web --link mute",
            1,
            "",
            "web links to service: mute which does not expose any ports\n",
        ),
        ("no links", "--for web/api", 1, "", "api has no links"),
        ("two links with the same variables", "--for web/api --link web --link web.other", 1, "", "both set WEB"),
        ("a missing Service", "--for web/nope", 1, "", "there is no Service web/nope"),
        ("an ambiguous Service", "--for web", 1, "", "other/web and web/web exist"),
        (
            "-n selects the Service",
            "--for web -n web --style convox --link api",
            0,
            "API_URL=https://api.web.svc.cluster.local:8443\n",
            "",
        ),
        ("an unknown style", "--for web/web --style heroku", 64, "", "heroku"),
    ];
    for (case, flags, status, stdout, stderr) in cases {
        let found = output(&format!("callsign env {flags} --manifests {}", cluster.display()));
        assert_eq!((found.0, found.1.as_str()), (*status, *stdout), "{case}: {}", found.2);
        assert!(found.2.contains(stderr), "{case}: {}", found.2);
        assert!(lines_of(&found.2) <= 1, "{case}: {}", found.2);
    }
}

#[test]
fn env_writes_its_file_atomically() {
    let scratch = Scratch::folder("env");
    let api = |port: u16| {
        format!(
            "kind: Service\nmetadata: {{name: api, namespace: web}}\nspec: {{clusterIP: 10.96.0.2, ports: [{{name: http, port: {port}}}]}}\n"
        )
    };
    let folder = Scratch::folder("env-cluster");
    folder.file("web.yaml", "kind: Service\nmetadata: {name: web, namespace: web, annotations: {callsign.dev/links: api}}\nspec: {clusterIP: 10.96.0.1}\n");
    folder.file("api.yaml", &api(3000));
    let out = scratch.0.join("links.env");
    let line = |more: &str| {
        format!("callsign env --for web/web --out {} --manifests {}{more}", out.display(), folder.0.display())
    };
    let read = || std::fs::read_to_string(&out).unwrap_or_default();
    assert_eq!(output(&line("")), (0, String::new(), String::new()));
    let first = read();
    assert!(first.starts_with("API_URL=http://api.web.svc.cluster.local:3000\n"));
    assert_eq!(output(&line(" --link nothing")).0, 1);
    assert_eq!(read(), first, "an error leaves the file unchanged");
    let (status, _, error) =
        output(&format!("callsign env --for web/web --out /nowhere/links.env --manifests {}", folder.0.display()));
    assert_eq!(status, 69);
    assert!(error.contains("/nowhere/links.env") && error.lines().count() == 1, "{error}");
    // A file below a device cannot be created.
    let (status, _, _) =
        output(&format!("callsign env --for web/web --out /dev/full/x --manifests {}", folder.0.display()));
    assert_eq!(status, 69);

    let words = line(" --watch");
    let words: Vec<&str> = words.split(' ').skip(1).collect();
    let mut child = process::callsign().args(words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let until = |holds: &dyn Fn(&str) -> bool| {
        for _ in 0..250 {
            if holds(&read()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("{}", read());
    };
    std::fs::remove_file(&out).unwrap();
    until(&|text| text == first);
    folder.file("api.yaml", &api(4000));
    until(&|text| text.starts_with("API_URL=http://api.web.svc.cluster.local:4000\n"));
    let second = read();
    std::fs::remove_file(folder.0.join("api.yaml")).unwrap();
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(read(), second, "a broken link leaves the last good file");
    folder.file("api.yaml", &api(5000));
    until(&|text| text.contains(":5000\n"));
    let left: Vec<_> = std::fs::read_dir(&scratch.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["links.env"], "no temporary file remains");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Severity, code, and a part of the object's name.
type Expected = (&'static str, &'static str, &'static str);

#[test]
fn doctor_reports_every_kind_of_finding() {
    let service = |namespace: &str, name: &str, annotations: &str, spec: &str| {
        format!(
            "kind: Service\nmetadata: {{name: {name}, namespace: {namespace}, annotations: {{{annotations}}}}}\nspec: {{{spec}}}\n"
        )
    };
    let ip = |last: u8| format!("clusterIP: 10.96.1.{last}, ports: [{{port: 80}}]");
    let slice = |namespace: &str, service: &str, endpoints: &str| {
        format!(
            "kind: EndpointSlice\nmetadata: {{name: {service}-1, namespace: {namespace}, labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nendpoints: [{endpoints}]\n"
        )
    };
    let app = |name: &str, last: u8| {
        format!("kind: Service\nmetadata: {{name: {name}, namespace: ix-plex}}\nspec: {{{}}}\n", ip(last))
    };
    let cases: Vec<(&str, Vec<String>, Option<Expected>)> = vec![
        ("no problem", vec![service("web", "api", "", &ip(1))], None),
        (
            "an alias claimed twice",
            vec![
                service("web", "a", "callsign.dev/alias: db", &ip(1)),
                service("web", "b", "callsign.dev/alias: db", &ip(2)),
            ],
            Some(("error", "conflicting-alias", "web/b")),
        ),
        (
            "an alias that is a Service's name",
            vec![service("web", "a", "callsign.dev/alias: b", &ip(1)), service("web", "b", "", &ip(2))],
            Some(("warning", "alias-shadowed", "web/a")),
        ),
        (
            "two defaults of one kind",
            vec![
                service("web", "mysql-a", "callsign.dev/default: 'true'", &ip(1)),
                service("web", "mysql-b", "callsign.dev/default: 'true'", &ip(2)),
            ],
            Some(("error", "ambiguous-default", "web/mysql-a")),
        ),
        (
            "a namespace that is a top-level domain",
            vec!["kind: Namespace\nmetadata: {name: dev}\n".into()],
            Some(("warning", "top-level-domain", "dev")),
        ),
        (
            "a namespace called svc",
            vec!["kind: Namespace\nmetadata: {name: svc}\n".into()],
            Some(("warning", "reserved-namespace", "svc")),
        ),
        (
            "a link to a missing Service",
            vec![service("web", "a", "callsign.dev/links: nope", &ip(1))],
            Some(("error", "broken-link", "web/a")),
        ),
        (
            "a link to a Service without ports",
            vec![service("web", "a", "callsign.dev/links: b", &ip(1)), service("web", "b", "", "clusterIP: 10.96.1.2")],
            Some(("error", "link-without-ports", "web/a")),
        ),
        (
            "a headless Service without ready endpoints",
            vec![
                service("web", "db", "", "clusterIP: None"),
                slice("web", "db", "{addresses: [10.1.0.1], conditions: {ready: false}}"),
            ],
            Some(("warning", "headless-without-endpoints", "web/db")),
        ),
        (
            "a ClusterIP without ready endpoints",
            vec![
                service("web", "api", "", &ip(1)),
                slice("web", "api", "{addresses: [10.1.0.1], conditions: {ready: false}}"),
            ],
            Some(("warning", "no-ready-endpoint", "web/api")),
        ),
        (
            "an ExternalName that is an address",
            vec![service("web", "out", "", "type: ExternalName, externalName: 192.0.2.1")],
            Some(("error", "invalid-external-name", "web/out")),
        ),
        (
            "an endpoint that shadows a Service",
            vec![
                service("web", "cache", "", "clusterIP: None"),
                slice("web", "cache", "{addresses: [10.1.0.1], hostname: api}"),
                service("cache", "api", "", &ip(1)),
            ],
            Some(("warning", "shadowed-by-endpoint", "cache/api")),
        ),
        (
            "an app shadowed by a Service",
            vec![app("plex", 1), service("web", "plex", "", &ip(2))],
            Some(("warning", "app-shadowed", "ix-plex")),
        ),
        (
            "an app without a main Service",
            vec![app("one", 1), app("two", 2)],
            Some(("warning", "app-without-main", "ix-plex")),
        ),
    ];
    for (case, objects, expected) in cases {
        let scratch = Scratch::folder("doctor");
        let path = scratch.file("cluster.yaml", &objects.join("---\n"));
        let (status, out, log) = output(&format!("callsign doctor -o json --manifests {}", path.display()));
        let findings: Vec<Value> =
            serde_json::from_str(&out).unwrap_or_else(|error| panic!("{case}: {error}: {out}{log}"));
        let found = findings.iter().map(|finding| {
            (
                finding["severity"].as_str().unwrap(),
                finding["code"].as_str().unwrap(),
                finding["object"].as_str().unwrap(),
            )
        });
        let found: Vec<_> = found.collect();
        match expected {
            None => assert_eq!(found, [], "{case}"),
            Some((severity, code, object)) => {
                assert!(
                    found.len() == 1 && found[0].0 == severity && found[0].1 == code && found[0].2.contains(object),
                    "{case}: {found:?}"
                );
            }
        }
        assert_eq!(status, i32::from(found.iter().any(|(severity, _, _)| *severity == "error")), "{case}");
        let (_, text, _) = output(&format!("callsign doctor --manifests {}", path.display()));
        assert_eq!(text.matches("  why: ").count(), found.len(), "{case}: {text}");
        assert_eq!(text.matches("  fix: ").count(), found.len(), "{case}: {text}");
    }
}

#[test]
fn services_watch_prints_each_change() {
    use std::io::{BufRead as _, BufReader};
    let folder = Scratch::folder("watch");
    folder.file(
        "api.yaml",
        "kind: Service\nmetadata: {name: api, namespace: web}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n",
    );
    let mut child = process::callsign()
        .args(["services", "-A", "--watch", "--manifests", folder.0.to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut next = || lines.next().unwrap();
    assert_eq!(next(), "CHANGE  NAMESPACE  SERVICE  DOMAIN                     PORTS");
    assert_eq!(next(), "new     web        api      api.web.svc.cluster.local  80");
    folder.file(
        "db.yaml",
        "kind: Service\nmetadata: {name: db, namespace: web}\nspec: {clusterIP: 10.96.0.2, ports: [{port: 5432}]}\n",
    );
    assert_eq!(next(), "new  web  db  db.web.svc.cluster.local  5432");
    folder.file("db.yaml", "kind: Service\nmetadata: {name: db, namespace: web}\nspec: {clusterIP: 10.96.0.2, ports: [{port: 5432, targetPort: 1}]}\n");
    assert_eq!(next(), "changed  web  db  db.web.svc.cluster.local  5432:1");
    std::fs::remove_file(folder.0.join("db.yaml")).unwrap();
    assert_eq!(next(), "gone  web  db  db.web.svc.cluster.local  5432:1");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn bad_input_is_a_one_line_error_with_a_status() {
    let unused_address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let unreachable = unused_address.to_string();
    let scratch = Scratch::folder("bad");
    let kubeconfig = scratch.file(
        "kubeconfig",
        &format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\nclusters: [{{name: a, cluster: {{server: 'http://{unused_address}'}}}}]\n\
             users: [{{name: a, user: {{}}}}]\ncontexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n"
        ),
    );
    let kubeconfig = kubeconfig.to_str().unwrap();
    for (line, status, word) in [
        ("services -A".to_owned(), 69, "--manifests"),
        (format!("services -A --kubeconfig {kubeconfig}"), 69, "cannot reach"),
        (format!("services -A --watch --kubeconfig {kubeconfig}"), 69, "cannot reach"),
        // The system does not say which address it could not reach.
        (format!("services -A --kubeconfig {kubeconfig}"), 69, unreachable.as_str()),
        (format!("doctor --kubeconfig {kubeconfig}"), 69, "cannot reach"),
        (format!("services --kubeconfig {kubeconfig} --context nope"), 78, "nope"),
        (format!("services -n nope {DEMO}"), 1, "list all with -A"),
        (format!("services -o xml {DEMO}"), 64, "xml"),
        (format!("explain a..b {DEMO}"), 64, "'a..b' is not a valid name"),
        (format!("explain api --type XYZ {DEMO}"), 64, "XYZ"),
        (format!("explain api --from nope {DEMO}"), 1, "nope"),
        ("resolvconf --server here".to_owned(), 64, "here"),
        ("resolvconf".to_owned(), 64, "--server"),
        ("completion tcsh".to_owned(), 64, "tcsh"),
        ("man nothing".to_owned(), 64, "'nothing'"),
    ] {
        let found = output(&format!("callsign {line}"));
        assert_eq!(found.0, status, "{line}: {}", found.2);
        assert!(found.1.is_empty() && found.2.contains(word) && lines_of(&found.2) == 1, "{line}: {}", found.2);
    }
}

#[test]
fn unusual_arguments_and_output_files_are_handled() {
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::PermissionsExt as _;
    let output_of = |arguments: &[&std::ffi::OsStr]| process::callsign().args(arguments).output().unwrap();
    let odd = output_of(&["services".as_ref(), "--manifests".as_ref(), std::ffi::OsStr::from_bytes(b"/tmp/\xff")]);
    assert_eq!((odd.status.code(), String::from_utf8_lossy(&odd.stderr).lines().count()), (Some(64), 1));
    let nothing = output_of(&[]);
    assert_eq!(nothing.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("--help"));

    // A symlink remains a symlink, and a file retains its permissions.
    let scratch = Scratch::folder("odd");
    let file = scratch.file("secret.env", "");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let link = scratch.0.join("link.env");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let env = |out: &Path| output(&format!("callsign env --for web/web --link api --out {} {DEMO}", out.display()));
    assert_eq!(env(&link).0, 0);
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(std::fs::read_to_string(&file).unwrap().starts_with("API_URL="));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(env(Path::new("/dev/null")).0, 0);
    assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
    assert!(env(Path::new("-")).1.starts_with("API_URL="));
    assert_eq!(env(&scratch.0).0, 64);
}

#[test]
fn endpoints_in_several_slices_are_counted_once() {
    let slice = |name: &str, port: u16| {
        format!(
            "kind: EndpointSlice\nmetadata: {{name: {name}, namespace: web, labels: {{kubernetes.io/service-name: two}}}}\naddressType: IPv4\nports: [{{port: {port}}}]\nendpoints: [{{addresses: [10.1.0.1]}}, {{addresses: [10.1.0.2]}}]\n"
        )
    };
    let service =
        "kind: Service\nmetadata: {name: two, namespace: web}\nspec: {clusterIP: 'fd00::5', ports: [{port: 80}]}\n";
    let scratch = Scratch::folder("slices");
    let path = scratch.file("cluster.yaml", &[service, &slice("a", 1), &slice("b", 2)].join("---\n"));
    let (_, listed, _) = output(&format!("callsign services -n web -o wide --manifests {}", path.display()));
    assert!(listed.contains(" 2/2 "), "{listed}");
    let (_, variables, _) =
        output(&format!("callsign env --for web/two --link two --style kubernetes --manifests {}", path.display()));
    assert!(variables.contains("TWO_PORT=tcp://[fd00::5]:80\n") && variables.contains("TWO_SERVICE_HOST=fd00::5\n"));
}

#[test]
fn the_admin_address_limits_the_view_of_each_client() {
    use callsign::report::{Viewer, explain};
    let objects = "kind: Namespace\nmetadata: {name: ix-secret, annotations: {callsign.dev/visible-to: other}}\n---\n\
                   kind: Service\nmetadata: {name: secret, namespace: ix-secret}\nspec: {clusterIP: 10.96.0.1}\n";
    let cases: &[(&str, &[&str], Option<&str>)] = &[
        ("an operator on the host", &[], None),
        ("the application next to a sidecar", &["--namespace", "web"], Some("web")),
    ];
    for (case, flags, expected) in cases {
        let viewer = match Viewer::local(&common::zone(objects, flags)) {
            Viewer::Operator => None,
            Viewer::Caller(namespace) => Some(namespace.unwrap().text()),
        };
        assert_eq!(viewer.as_deref(), *expected, "{case}");
    }
    // For callers that may not see it, a hidden app is explained like a missing one.
    let zone = common::zone(objects, &[]);
    let stranger = explain::CallerSpec::new(None, String::new());
    let explanation = |name: &str| {
        let (wire, qtype) = (explain::name_of(name).unwrap(), explain::type_of("A").unwrap());
        explain::explain(&zone, &stranger, &wire, qtype, explain::Audience::Caller)
            .unwrap()
            .text()
            .replace("secret", "nonono")
    };
    assert_eq!(explanation("secret"), explanation("nonono"));
    assert_eq!(explanation("x.secret"), explanation("x.nonono"));
}

#[test]
fn explain_queries_the_server_over_tcp_for_a_long_answer() {
    let endpoints: Vec<String> = (0..200).map(|index| format!("{{addresses: [10.1.0.{index}]}}")).collect();
    let cluster = format!(
        "kind: Service\nmetadata: {{name: big, namespace: web}}\nspec: {{clusterIP: None}}\n---\nkind: EndpointSlice\n\
         metadata: {{name: big-1, namespace: web, labels: {{kubernetes.io/service-name: big}}}}\naddressType: IPv4\nendpoints: [{}]\n",
        endpoints.join(", ")
    );
    let scratch = Scratch::folder("big");
    let path = scratch.file("cluster.yaml", &cluster);
    let server = Server::start(&["--manifests", path.to_str().unwrap()], None);
    let line =
        format!("callsign explain big.web.svc.cluster.local --manifests {} --server {}", path.display(), server.dns);
    let (status, explanation, _) = output(&line);
    assert!(status == 0 && explanation.contains("agrees: "), "{explanation}");
}

#[test]
fn the_kubectl_plugin_uses_the_kubeconfig_of_the_environment() {
    let folder = Scratch::folder("plugin");
    let plugin = folder.0.join("kubectl-callsign");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_callsign"), &plugin).unwrap();
    let kubeconfig = folder.file("config", "clusters: 7\n");
    // The error shows that the file is read without --kubeconfig. Some files in the list may be missing.
    let several = format!("/no/such/file:{}:", kubeconfig.display());
    let output = process::with(&plugin).args(["services", "-A"]).env("KUBECONFIG", several).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains(kubeconfig.to_str().unwrap()));
    let output = process::with(&plugin)
        .args(["explain", "api", "--from", "web", "--manifests", "deploy/demo"])
        .env("KUBECONFIG", &kubeconfig)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn completion_scripts_and_manual_pages_cover_commands_and_flags() {
    for shell in ["bash", "zsh", "fish"] {
        let (status, script, _) = output(&format!("callsign completion {shell}"));
        assert_eq!(status, 0);
        assert!(script.contains("explain") && script.contains("manifests"), "{shell}");
    }
    let (_, page, _) = output("callsign man");
    assert!(page.contains(".TH callsign 1") && page.contains("explain"));
    let (_, page, _) = output("callsign man explain");
    assert!(page.contains(".TH callsign-explain 1") && page.contains("server"));
}

#[test]
fn the_admin_address_matches_the_commands_and_respects_visibility() {
    let server = Server::start(&["--manifests", "deploy/demo", "--callers", "127.0.0.0/8=web"], None);
    let body = |path: &str| server.get(path).split("\r\n\r\n").nth(1).unwrap().to_owned();
    let listed: Vec<Value> = serde_json::from_str(&body("/api/v1/services")).unwrap();
    let printed: Vec<Value> = serde_json::from_str(&output(&format!("callsign services -A -o json {DEMO}")).1).unwrap();
    assert_eq!(listed, printed);
    let explained: Value = serde_json::from_str(&body("/api/v1/explain?name=mysql&from=web")).unwrap();
    let printed: Value =
        serde_json::from_str(&output(&format!("callsign explain mysql --from web -o json {DEMO}")).1).unwrap();
    assert_eq!(explained, printed);
    assert!(server.get("/api/v1/services?namespace=nope").starts_with("HTTP/1.1 404"));
    assert!(server.get("/api/v1/explain?name=a..b").starts_with("HTTP/1.1 400"));
    assert!(body("/api/v1/explain?name=ledger.backoffice-workers&from=web").contains("hidden"));
    // The explanation that another host would get.
    let zone = common::zone(&std::fs::read_to_string("deploy/demo/backoffice-workers.yaml").unwrap(), &[]);
    let caller_spec = callsign::report::explain::CallerSpec::parse(&zone, Some("192.0.2.1")).unwrap();
    let name = callsign::report::explain::name_of("ledger.backoffice-workers").unwrap();
    let qtype = callsign::report::explain::type_of("A").unwrap();
    let audience = callsign::report::explain::Audience::Caller;
    let explanation = callsign::report::explain::explain(&zone, &caller_spec, &name, qtype, audience).unwrap();
    let text = explanation.text();
    assert!(!text.contains("hidden") && !text.contains("visible") && !text.contains("ClusterIP"), "{text}");
    let _: IpAddr = server.dns.ip();
}
