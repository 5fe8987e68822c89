//! The program as a user runs it: exit statuses, one-line errors, signals, and files that change.

use std::io::BufRead as _;
use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::process::{Server, callsign, run};
use crate::common::{Scratch, exchange, process};

const API: &str = "kind: Service\nmetadata: {name: api, namespace: web}\nspec: {clusterIP: 10.96.0.10}\n";

#[test]
fn every_error_is_one_line_and_an_exit_status() {
    let scratch = Scratch::folder("command");
    let bad_yaml = scratch.file("bad.yaml", "kind: Service\nmetadata:\n  name: [\n");
    let bad_kubeconfig = scratch.file("kubeconfig", "clusters: 7\n");
    let good = scratch.file("good.yaml", API);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (taken, taken_udp) = (taken.local_addr().unwrap().to_string(), taken_udp.local_addr().unwrap().to_string());
    let (bad_yaml, bad_kubeconfig, good) =
        (bad_yaml.to_str().unwrap(), bad_kubeconfig.to_str().unwrap(), good.to_str().unwrap());
    let free = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--health", "127.0.0.1:0"];
    let config = scratch.file("config.yaml", "manifests: x\nno-such-flag: 1\n");
    let cases: Vec<(&str, Vec<&str>, i32, Vec<&str>)> = vec![
        ("no source", vec![], 69, vec!["--manifests", "--kubeconfig", "service account"]),
        ("missing manifests", vec!["--manifests", "/no/such/folder"], 69, vec!["/no/such/folder", "No such file"]),
        ("a manifest that does not parse", vec!["--manifests", bad_yaml], 78, vec!["bad.yaml:", "line"]),
        ("a missing kubeconfig", vec!["--kubeconfig", "/no/such/file"], 78, vec!["/no/such/file"]),
        ("an invalid kubeconfig", vec!["--kubeconfig", bad_kubeconfig], 78, vec!["kubeconfig"]),
        ("a TCP port in use", vec!["--manifests", good, "--listen", &taken], 69, vec![taken.as_str(), "in use"]),
        (
            "a UDP port in use",
            vec!["--manifests", good, "--listen", &taken_udp],
            69,
            vec![taken_udp.as_str(), "in use"],
        ),
        ("a health port in use", vec!["--manifests", good, "--health", &taken], 69, vec!["another --health", "in use"]),
        (
            "an empty token file",
            vec!["--manifests", good, "--admin-token-file", "/dev/null"],
            78,
            vec!["--admin-token-file", "empty"],
        ),
        ("an admin port in use", vec!["--manifests", good, "--admin", &taken], 69, vec!["another --admin", "in use"]),
        ("an unknown flag", vec!["--manifest", good], 64, vec!["\n  tip: a similar argument exists: '--manifests'"]),
        (
            "a filter by span",
            vec!["--manifests", good, "--log-level", "callsign[sync]=debug"],
            78,
            vec!["is not a level"],
        ),
        ("a level that is none", vec!["--manifests", good, "--log-level", "loud"], 78, vec!["'loud' is not a level"]),
        (
            "names of other namespaces that are denied",
            vec!["--manifests", good, "--other-names", "nxdomain", "--watch-namespace", "web"],
            78,
            vec!["--other-names", "--watch-namespace"],
        ),
        ("a TTL out of range", vec!["--manifests", good, "--ttl", "4000"], 64, vec!["4000", "3600"]),
        (
            "an invalid network",
            vec!["--manifests", good, "--allow-from", "10.0.0.0/33"],
            64,
            vec!["10.0.0.0/33", "ADDRESS/PREFIX"],
        ),
        (
            "a caller without a namespace",
            vec!["--manifests", good, "--callers", "10.0.0.0/8"],
            64,
            vec!["CIDR=NAMESPACE"],
        ),
        (
            "an invalid address",
            vec!["--manifests", good, "--listen", "here"],
            78,
            vec!["--listen", "here", "ADDR:PORT"],
        ),
        (
            "an invalid domain",
            vec!["--manifests", good, "--cluster-domain", "a..b"],
            78,
            vec!["--cluster-domain", "a..b"],
        ),
        ("an invalid namespace", vec!["--manifests", good, "--namespace", "a.b"], 78, vec!["--namespace", "a.b"]),
        ("--pods node without a node name", vec!["--manifests", good, "--pods", "node"], 78, vec!["--node-name"]),
        (
            "a configuration file with an unknown flag",
            vec!["--config", config.to_str().unwrap()],
            64,
            vec!["no-such-flag"],
        ),
    ];
    for (case, arguments, status, words) in cases {
        // The case's own flags come last, where they override the others or add to them.
        let mut all = vec!["serve"];
        for pair in free.chunks(2) {
            if !arguments.contains(&pair[0]) {
                all.extend(pair);
            }
        }
        all.extend(&arguments);
        let output = run(&all);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{case}: {error}");
        // The parser of flags adds its suggestion on a line of its own.
        let lines = error.trim().lines().filter(|line| !line.trim_start().starts_with("tip: ")).count();
        assert_eq!(lines, 1, "{case}: not one line: {error}");
        assert!(error.starts_with("callsign: "), "{case}: {error}");
        for word in words {
            assert!(error.contains(word), "{case}: no '{word}' in {error}");
        }
        assert!(output.stdout.is_empty(), "{case}");
    }
}

#[test]
fn help_shows_examples_and_version_names_the_program() {
    let help = run(&["serve", "--help"]);
    assert_eq!(help.status.code(), Some(0));
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(text.contains("Examples:") && text.contains("--manifests deploy/demo"));
    assert!(String::from_utf8(run(&["--version"]).stdout).unwrap().starts_with("callsign "));
}

#[test]
fn sigterm_starts_a_lame_duck_before_the_exit() {
    let scratch = Scratch::folder("term");
    let path = scratch.file("api.yaml", API);
    let server = Server::start(&["--manifests", path.to_str().unwrap(), "--lame-duck", "3s"], None);
    assert!(server.get("/health").starts_with("HTTP/1.1 200"));
    assert!(server.get("/ready").starts_with("HTTP/1.1 200"));
    let start = Instant::now();
    server.signal("-TERM");
    std::thread::sleep(Duration::from_millis(200));
    let ready = server.get("/ready");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("shutting down"), "{ready}");
    assert!(server.get("/health").starts_with("HTTP/1.1 200"));
    assert!(server.ask("api.web.svc.cluster.local A").contains("10.96.0.10"), "it still answers");
    let metrics = server.get("/metrics");
    assert!(metrics.contains("\ncallsign_queries_after_sigterm_total 1\n"), "{metrics}");
    let (status, log) = server.wait();
    assert_eq!(status, Some(0), "{log}");
    assert!(start.elapsed() > Duration::from_millis(2900));
}

#[test]
fn every_line_of_a_json_log_is_json() {
    let mut server = callsign()
        .args(["serve", "--manifests", "deploy/demo", "--log-format", "json", "--upstream", "none"])
        .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--health", "127.0.0.1:0", "--lame-duck", "0"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = std::io::BufReader::new(server.stderr.take().unwrap());
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        assert!(log.read_line(&mut line).unwrap() > 0, "no line says where the server listens: {lines:?}");
        lines.push(serde_json::from_str::<Value>(&line).unwrap_or_else(|error| panic!("{error}: {line}")));
        if lines.last().is_some_and(|line| line["fields"]["message"] == "callsign listens") {
            break;
        }
    }
    let fields = &lines.last().unwrap()["fields"];
    for field in ["version", "listens", "admin", "health", "source"] {
        assert!(fields[field].is_string(), "{field}: {fields}");
    }
    server.kill().unwrap();
    let output = server.wait_with_output().unwrap();
    assert!(output.stdout.is_empty(), "{output:?}");
}

#[test]
fn a_pod_without_a_token_is_told_so() {
    let output = callsign()
        .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--health", "127.0.0.1:0"])
        .args(["--upstream", "none"])
        .env("KUBERNETES_SERVICE_HOST", "10.96.0.1")
        .env("KUBERNETES_SERVICE_PORT", "443")
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{error}");
    for words in ["no service account token is mounted", "automountServiceAccountToken"] {
        assert!(error.contains(words), "no '{words}' in {error}");
    }
}

#[test]
fn sigint_skips_the_lame_duck() {
    let server = Server::start(&["--manifests", "-"], Some(API));
    assert!(server.ask("api.web.svc.cluster.local A").contains("10.96.0.10"), "standard input is a source");
    let start = Instant::now();
    server.signal("-INT");
    assert_eq!(server.wait().0, Some(0));
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[test]
fn an_edited_manifest_takes_effect_within_a_second() {
    let scratch = Scratch::folder("folder");
    let path = scratch.file("api.yaml", API);
    scratch.file("other.yaml", &API.replace("api", "other"));
    scratch.file("broken.yaml", "kind: [\n");
    scratch.file("notes.txt", "not a manifest");
    let server = Server::start(&["--manifests", scratch.0.to_str().unwrap()], None);
    let question = "api.web.svc.cluster.local A";
    let second = Duration::from_secs(1);
    server.wait_for_answer(question, "10.96.0.10", second);
    // Most programs write the file in place; editors write another file and rename it.
    scratch.file("api.yaml", &API.replace("0.10", "0.11"));
    server.wait_for_answer(question, "10.96.0.11", second);
    let other = scratch.file(".api.yaml.swp", &API.replace("0.10", "0.12"));
    std::fs::rename(other, &path).unwrap();
    server.wait_for_answer(question, "10.96.0.12", second);
    // While a file does not parse, its last good facts remain.
    scratch.file("api.yaml", "kind: Service\nmetadata:\n  - name: [\n");
    let start = Instant::now();
    while !server.get("/ready?verbose").contains("api.yaml:") {
        assert!(start.elapsed() < 2 * second, "the error is reported");
    }
    assert!(server.ask(question).contains("10.96.0.12"));
    scratch.file("api.yaml", &API.replace("0.10", "0.13"));
    server.wait_for_answer(question, "10.96.0.13", second);
    scratch.file("new.yaml", &API.replace("api", "new"));
    server.wait_for_answer("new.web.svc.cluster.local A", "10.96.0.10", second);
    std::fs::remove_file(scratch.0.join("new.yaml")).unwrap();
    server.wait_for_answer("new.web.svc.cluster.local A", "NXDOMAIN", second);
    server.signal("-INT");
    let (_, log) = server.wait();
    assert!(log.contains("broken.yaml:") && log.contains("api.yaml:"), "both files are logged: {log}");
}

#[test]
fn flags_override_the_configuration_file() {
    let scratch = Scratch::folder("config");
    let path = scratch.file("api.yaml", API);
    let config = scratch.file(
        "config.yaml",
        &format!(
            "manifests: {}\nttl: 77\nnamespace: web\ncluster-domain: [one.example, two.example]\n",
            path.display()
        ),
    );
    let server = Server::start(&["--config", config.to_str().unwrap(), "--ttl", "33"], None);
    assert!(server.ask("api.web.svc.one.example A").contains(" 33 A 10.96.0.10"), "the command line wins");
    assert!(server.ask("api.web.svc.two.example A").contains("10.96.0.10"));
    assert!(server.ask("api A").contains("10.96.0.10"));
}

#[test]
fn services_without_an_address_get_a_stable_one() {
    let text = "kind: Service\nmetadata: {name: api, namespace: web}\nspec: {ports: [{port: 80}]}\n";
    let address = |text: &str| Server::start(&["--manifests", "-"], Some(text)).ask("api.web.svc.cluster.local A");
    let first = address(text);
    assert!(first.contains(" A 10.96."), "{first}");
    assert_eq!(address(&format!("{text}---\n{}", text.replace("api", "aaa"))), first, "regardless of other Services");
}

#[test]
fn explain_shows_each_rule_and_the_reason_for_a_failure() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/demo");
    let explain = |arguments: &[&str]| {
        let all: Vec<&str> = ["explain", "--manifests", demo].iter().chain(arguments).copied().collect();
        let output = run(&all);
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), text)
    };
    for (case, arguments, status, words) in [
        (
            "a Service",
            vec!["api", "--from", "web"],
            0,
            vec!["for a caller in namespace web", "found: api.web", "api. 5 A 10.96.10.20"],
        ),
        ("a database", vec!["mysql", "--from", "web"], 0, vec!["alias", "nothing", "mysql-default.web", "10.96.10.30"]),
        ("an app", vec!["sab"], 0, vec!["no caller given", "sab-sabnzbd.ix-sab", "10.96.30.20"]),
        ("a misspelt name", vec!["apj", "--from", "web"], 1, vec!["NXDOMAIN", "did you mean", "  api\n"]),
        (
            "a Service of another namespace",
            vec!["scheduler", "--from", "web"],
            1,
            vec!["did you mean", "scheduler.backoffice-workers"],
        ),
        (
            "a hidden Service",
            vec!["ledger.backoffice-workers", "--from", "web"],
            1,
            vec!["hidden: ledger.backoffice-workers", "not visible to this caller"],
        ),
        ("a full name", vec!["sab.ix-sab.svc.cluster.local"], 1, vec!["full name", "NXDOMAIN"]),
        (
            "SRV",
            vec!["_http._tcp.api", "--from", "web", "--type", "srv"],
            0,
            vec!["SRV 0 100 3000 api.web.svc.cluster.local."],
        ),
        ("an unknown caller", vec!["api", "--from", "nobody"], 1, vec!["--from nobody", "no namespace or pod"]),
        ("an unknown type", vec!["api", "--type", "huh"], 64, vec!["'huh' is not a record type"]),
        ("an invalid name", vec!["a..b"], 64, vec!["'a..b' is not a valid name"]),
        ("an invalid server address", vec!["api", "--from", "web", "--server", "here"], 64, vec!["--server 'here'"]),
    ] {
        let (found, text) = explain(&arguments);
        assert_eq!(found, status, "{case}: {text}");
        for word in words {
            assert!(text.contains(word), "{case}: no '{word}' in\n{text}");
        }
    }
    let (_, json) = explain(&["api", "--from", "web", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["from"]["namespace"], "web");
    assert_eq!(json["steps"][0]["found"], "found");
    assert_eq!(json["answers"][0], "api. 5 A 10.96.10.20");
    // The explanation reports whether a running server agrees.
    let server = Server::start(&["--manifests", demo, "--namespace", "web"], None);
    let address = server.dns.to_string();
    let (status, text) = explain(&["api", "--from", "web", "--server", &address]);
    assert!(status == 0 && text.contains("agrees: NOERROR"), "{text}");
    // A name that the manifests would forward, but the server answers itself.
    let other = Server::start(&["--manifests", "-"], Some(&API.replace("namespace: web", "namespace: elsewhere")));
    let (status, text) = explain(&["api.elsewhere", "--from", "web", "--server", &other.dns.to_string()]);
    assert!(status == 1 && text.contains("answers differently: NOERROR"), "{text}");
    let (status, text) = explain(&["api", "--from", "backoffice-workers", "--server", &address]);
    assert!(status == 1 && text.contains("answers differently: NOERROR"), "{text}");
}

#[test]
fn kubectl_output_is_accepted_as_manifests() {
    // `kubectl get … -o yaml` prints a List with the fields that an API server adds.
    let list = "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: \"\"}\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata:\n    creationTimestamp: \"2026-01-02T03:04:05Z\"\n    name: api\n    namespace: web\n    resourceVersion: \"7\"\n    uid: 0\n  spec:\n    clusterIP: 10.96.0.10\n    clusterIPs: [10.96.0.10]\n    internalTrafficPolicy: Cluster\n    ipFamilies: [IPv4]\n    ports: [{name: http, port: 80, protocol: TCP, targetPort: http}]\n    type: ClusterIP\n  status: {loadBalancer: {}}\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: web-0, namespace: web}\n  status: {phase: Running, podIP: 10.1.0.7}\n";
    let mut child = process::callsign()
        .args(["explain", "api", "--manifests", "-", "--from", "web-0"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), list.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && text.contains("caller in namespace web (pod web-0)") && text.contains("10.96.0.10"),
        "{text}"
    );
}

#[test]
fn name_prints_the_domain_name_of_an_app() {
    let demo = ["--manifests", "deploy/demo"];
    type Case = (&'static str, &'static [&'static str], bool, i32, &'static str, &'static str);
    let cases: &[Case] = &[
        (
            "an app name without the name of its chart",
            &["--app", "sab", "--chart", "sabnzbd"],
            false,
            0,
            "sab-sabnzbd.ix-sab.svc.cluster.local\n",
            "",
        ),
        (
            "an app name that contains the name of its chart",
            &["--app", "sabnzbd-23", "--chart", "sabnzbd"],
            false,
            0,
            "sabnzbd-23.ix-sabnzbd-23.svc.cluster.local\n",
            "",
        ),
        (
            "another service of an app",
            &["--app", "traefik", "--chart", "traefik", "--service", "tcp"],
            false,
            0,
            "traefik-tcp.ix-traefik.svc.cluster.local\n",
            "",
        ),
        (
            "another domain and prefix",
            &["--app", "sab", "--chart", "Sabnzbd", "--cluster-domain", "home.arpa", "--application-prefix", "app-"],
            false,
            0,
            "sab-sabnzbd.app-sab.svc.home.arpa\n",
            "",
        ),
        (
            "an app that exists",
            &["--app", "sab", "--chart", "sabnzbd"],
            true,
            0,
            "sab-sabnzbd.ix-sab.svc.cluster.local\n",
            "",
        ),
        (
            "an app that does not exist",
            &["--app", "sab", "--chart", "plex"],
            true,
            1,
            "",
            "callsign: no Service sab-plex in namespace ix-sab; `callsign explain sab` lists similar names\n",
        ),
        ("an empty label", &["--app", "", "--chart", "x", "--service", ""], false, 64, "", "not a valid DNS label"),
        ("a missing source", &["--app", "a", "--chart", "b", "--manifests", "/no/such"], false, 69, "", "/no/such"),
        ("no chart", &["--app", "a"], false, 64, "", "--chart"),
    ];
    for (case, arguments, with_demo, status, stdout, stderr) in cases {
        let arguments: Vec<&str> = ["name"]
            .into_iter()
            .chain(arguments.iter().copied())
            .chain(demo.into_iter().filter(|_| *with_demo))
            .collect();
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(*status), "{case}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), *stdout, "{case}");
        let error_text = String::from_utf8_lossy(&output.stderr);
        let lines = error_text.lines().filter(|line| !line.starts_with("  ")).count();
        assert!(error_text.contains(stderr) && lines <= 1, "{case}: {error_text}");
    }
}

#[test]
fn dns_lists_the_domain_names_of_apps() {
    let all = "\
ix-sab
sab-sabnzbd.ix-sab.svc.cluster.local          10097/TCP

ix-sabnzbd
sabnzbd.ix-sabnzbd.svc.cluster.local          10097/TCP

ix-sonarr
sonarr.ix-sonarr.svc.cluster.local            8989/TCP

ix-traefik
traefik.ix-traefik.svc.cluster.local          9000/TCP
traefik-metrics.ix-traefik.svc.cluster.local  9180/TCP
traefik-tcp.ix-traefik.svc.cluster.local      80/TCP,443/TCP
";
    let sab = "ix-sab\nsab-sabnzbd.ix-sab.svc.cluster.local  10097/TCP\n";
    let cases: &[(&str, &[&str], i32, &str, &str)] = &[
        ("all apps", &[], 0, all, ""),
        ("one app", &["sab"], 0, sab, ""),
        ("one app by its namespace", &["ix-sab"], 0, sab, ""),
        ("a known app is listed in spite of an unknown one", &["sab", "plex"], 1, sab, "plex"),
        ("no namespace with the prefix", &["--application-prefix", "app-"], 1, "", "app-"),
    ];
    for (case, arguments, status, stdout, stderr) in cases {
        let arguments: Vec<&str> =
            ["dns", "--manifests", "deploy/demo"].into_iter().chain(arguments.iter().copied()).collect();
        let output = run(&arguments);
        assert_eq!(String::from_utf8_lossy(&output.stdout), *stdout, "{case}");
        assert_eq!(output.status.code(), Some(*status), "{case}");
        let error_text = String::from_utf8_lossy(&output.stderr);
        assert!(error_text.contains(stderr) && error_text.lines().count() <= 1, "{case}: {error_text}");
    }
}

#[test]
fn a_full_disk_is_an_error_and_a_closed_pipe_is_not() {
    let commands: [&[&str]; 7] = [
        &["services", "-A", "--manifests", "deploy/demo"],
        &["env", "--for", "web/web", "--manifests", "deploy/demo"],
        &["doctor", "--manifests", "deploy/demo"],
        &["resolvconf", "--server", "10.0.0.1"],
        &["dns", "--manifests", "deploy/demo"],
        &["name", "--app", "sab", "--chart", "sabnzbd"],
        &["explain", "api", "--from", "web", "--manifests", "deploy/demo"],
    ];
    for command in commands {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = process::callsign().args(command).stdout(full).output().unwrap();
        let error_text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(69), "{command:?}");
        assert!(
            error_text.contains("cannot write the output") && error_text.lines().count() == 1,
            "{command:?}: {error_text}"
        );
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = process::callsign().args(command).stdout(writer).output().unwrap();
        assert_eq!((output.status.code(), &*output.stderr), (Some(0), &b""[..]), "{command:?}");
    }
}

#[test]
fn pod_namespace_alone_does_not_change_what_callers_see() {
    let scratch = Scratch::folder("pod-namespace");
    let path = scratch
        .file("api.yaml", "kind: Service\nmetadata: {name: api, namespace: web}\nspec: {clusterIP: 10.96.0.10}\n");
    for (variable, expected) in [("POD_NAMESPACE", "NXDOMAIN"), ("CALLSIGN_NAMESPACE", "10.96.0.10")] {
        let mut command = process::callsign();
        command.env(variable, "web");
        let server = Server::start_with(command, &["--manifests", path.to_str().unwrap()], None);
        assert!(server.ask("api. A").contains(expected), "{variable}: {}", server.ask("api. A"));
    }
}

#[test]
fn a_server_gives_up_what_it_does_not_need() {
    let server = Server::start(&["--manifests", "deploy/demo"], None);
    assert_eq!(server.status("NoNewPrivs:"), 1);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.child.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
}

#[test]
fn sighup_reads_everything_again_and_never_ends_the_server() {
    let scratch = Scratch::folder("hangup");
    let path = scratch.file("api.yaml", API);
    let server = Server::start(&["--manifests", path.to_str().unwrap(), "--log-level", "warn,callsign=info"], None);
    for _ in 0..3 {
        server.signal("-HUP");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(server.ask("api.web.svc.cluster.local A").contains("10.96.0.10"));
    server.signal("-INT");
    let (status, log) = server.wait();
    assert!(
        status == Some(0) && log.contains("SIGHUP; reading manifests, certificates and resolv.conf again"),
        "{log}"
    );
}

#[test]
fn log_levels_add_to_the_default() {
    let level = |level: &str| {
        let server = Server::start(&["--manifests", "-", "--log-level", level], Some(API));
        server.signal("-INT");
        server.wait().1
    };
    assert!(level("callsign::cluster=debug").contains("INFO synced"), "the default stays");
    assert!(!level("warn").contains("INFO"), "a level alone replaces it");
}

#[test]
fn other_names_are_refused_or_denied_as_asked() {
    for (flags, expected) in [(&[][..], "REFUSED"), (&["--other-names", "nxdomain"], "NXDOMAIN")] {
        let server = Server::start(&[&["--manifests", "-"], flags].concat(), Some(API));
        for name in ["www.example.com. A", "www.example.com. AAAA"] {
            assert!(server.ask(name).contains(expected), "{flags:?}: {}", server.ask(name));
        }
        assert!(server.ask(". NS").contains("REFUSED"), "the root exists");
        assert!(server.ask("api.web.svc.cluster.local A").contains("10.96.0.10"));
    }
}

#[test]
fn metrics_come_in_the_format_that_the_client_accepts() {
    let server = Server::start(&["--manifests", "-"], Some(API));
    let plain = server.get("/metrics");
    assert!(plain.contains("content-type: text/plain; version=0.0.4"), "{plain}");
    assert!(plain.contains("# TYPE callsign_dns_requests_total counter") && !plain.contains("# EOF"), "{plain}");
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    let open = exchange::http_get_with(server.admin, "/metrics", &format!("Accept: {accept}\r\n"));
    assert!(open.contains("content-type: application/openmetrics-text; version=1.0.0"), "{open}");
    assert!(open.contains("# TYPE callsign_dns_requests counter") && open.contains("# EOF"), "{open}");
}

#[test]
fn the_admin_address_of_manifests_is_loopback() {
    let config = |flags: &[&str]| crate::common::config(flags).admin.to_string();
    assert_eq!(config(&["--manifests", "deploy/demo"]), "127.0.0.1:9153");
    assert_eq!(config(&["--kubeconfig", "x"]), "[::]:9153");
    assert_eq!(config(&["--manifests", "deploy/demo", "--admin", "[::]:1"]), "[::]:1");
}

#[test]
fn privileged_ports_name_their_cures() {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    let mut command = match is_root {
        true => {
            let mut command = std::process::Command::new("setpriv");
            command.args(["--reuid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]);
            command.arg(env!("CARGO_BIN_EXE_callsign"));
            command
        }
        false => callsign(),
    };
    let output = command.args(["serve", "--manifests", "/no/such/folder", "--listen", "127.0.0.1:53"]).output();
    // Where the port is not privileged, the missing folder ends the server.
    let error = output.map_or_else(|error| error.to_string(), |output| String::from_utf8(output.stderr).unwrap());
    if !error.contains("127.0.0.1:53 (udp): Permission denied") {
        return eprintln!("not tested: port 53 is not privileged here, or setpriv is missing: {error}");
    }
    for cure in ["a port above 1023", "CAP_NET_BIND_SERVICE", "net.ipv4.ip_unprivileged_port_start"] {
        assert!(error.contains(cure), "{error}");
    }
}
