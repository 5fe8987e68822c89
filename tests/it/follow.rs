//! A zone that stays true to the cluster: self-checks, saved facts, restarts of either side, and a random walk.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::common::Scratch;
use crate::common::follower::{API, Follower, namespace, service, slice, with_api};
use crate::common::scripted::{Api, Fault, WatchListSupport};
use crate::common::upstream::Upstream;
use serde_json::json;

#[test]
fn the_self_check_finds_and_repairs_changes_without_events() {
    let api = with_api(WatchListSupport::Yes);
    api.put(service("stays", "10.96.0.50"));
    let follower = Follower::start(&api.kubeconfig(), &["--self-check", "1ms"]);
    follower.wait_for_answer(API, "10.96.0.10");
    api.put_silently(service("api", "10.96.0.11"));
    api.put_silently(service("unheard", "10.96.0.12"));
    assert_eq!(follower.ask(API), "10.96.0.10", "no event was sent");
    // A self-check runs when a watch ends. A difference counts only if the next self-check finds it too.
    let start = Instant::now();
    while follower.ask(API) != "10.96.0.11" {
        api.end_watches();
        std::thread::sleep(Duration::from_millis(100));
        assert!(start.elapsed() < Duration::from_secs(10));
    }
    follower.wait_for_answer("unheard.web.svc.cluster.local A", "10.96.0.12");
    assert_eq!(follower.ask("stays.web.svc.cluster.local A"), "10.96.0.50");
    let metrics = follower.admin("/metrics");
    assert!(metrics.contains("callsign_self_check_differences_total 2"), "{metrics}");
}

#[test]
fn a_server_of_one_namespace_asks_upstreams_for_all_others() {
    let api = with_api(WatchListSupport::Yes);
    let mut other = service("scheduler", "10.96.0.99");
    other["metadata"]["namespace"] = "backoffice".into();
    api.put(other);
    let upstream = Upstream::serving(
        "scheduler.backoffice.svc.cluster.local 30 A 10.96.0.70\n\
         dns-version.cluster.local 30 TXT 1.1.0\n\
         70.0.96.10.in-addr.arpa 30 PTR scheduler.backoffice.svc.cluster.local.\n\
         api.example.com 30 A 192.0.2.1",
    );
    let flags = ["--watch-namespace", "web", "--namespace", "web", &upstream.flag()];
    let follower = Follower::start(&api.kubeconfig(), &flags);
    follower.wait_for_answer(API, "10.96.0.10");
    let cases = [
        ("a Service of its own", "api.web.svc.cluster.local A", "10.96.0.10", false),
        ("its bare name", "api A", "10.96.0.10", false),
        ("its address", "10.0.96.10.in-addr.arpa PTR", "api.web.svc.cluster.local.", false),
        ("a name that its namespace lacks", "none.web.svc.cluster.local A", "NXDOMAIN", false),
        ("a Service of another namespace", "scheduler.backoffice.svc.cluster.local A", "10.96.0.70", true),
        ("a name that another namespace lacks", "none.backoffice.svc.cluster.local A", "NXDOMAIN", true),
        ("the cluster domain itself", "dns-version.cluster.local TXT", "1.1.0", true),
        (
            "an address of another namespace",
            "70.0.96.10.in-addr.arpa PTR",
            "scheduler.backoffice.svc.cluster.local.",
            true,
        ),
        ("a name of the internet", "api.example.com A", "192.0.2.1", true),
    ];
    for (case, question, expected, is_forwarded) in cases {
        let before = upstream.asked();
        let found = follower.ask(question);
        assert_eq!(found.trim_matches('"').trim_end_matches('.'), expected.trim_end_matches('.'), "{case}");
        assert_eq!(upstream.asked() > before, is_forwarded, "{case}");
    }
    let paths = api.requests();
    assert!(paths.iter().all(|path| path.contains("/namespaces/web/")), "it reads nothing else: {paths:?}");
    api.delete("services", "web", "api");
    follower.wait_for_answer(API, "NXDOMAIN");
}

#[test]
fn watches_last_minutes_and_end_at_different_times() {
    let api = with_api(WatchListSupport::Yes);
    let followers: Vec<Follower> = (0..8).map(|_| Follower::of(&api)).collect();
    for follower in &followers {
        follower.wait_for_answer(API, "10.96.0.10");
    }
    let seconds = |path: &String| path.split("timeoutSeconds=").nth(1)?.split('&').next()?.parse::<u64>().ok();
    let all: Vec<u64> = api.requests().iter().filter_map(seconds).collect();
    assert!(all.len() >= 24 && all.iter().all(|seconds| (300..=600).contains(seconds)), "{all:?}");
    assert!(all.iter().any(|seconds| *seconds != all[0]), "{all:?}");
}

#[test]
fn a_server_starts_from_saved_facts() {
    let scratch = Scratch::folder("saved");
    let file = scratch.0.join("facts");
    let saved = file.to_str().unwrap();
    let mut api = with_api(WatchListSupport::Yes);
    api.put(service("old", "10.96.0.30"));
    api.put(json!({"kind": "Service", "metadata": {"name": "db", "namespace": "web"}, "spec": {"clusterIP": "None"}}));
    api.put(slice("db-1", "db", &["10.1.0.1", "10.1.0.2"]));
    let first = Follower::start(&api.kubeconfig(), &["--saved", saved]);
    first.wait_for_answer(API, "10.96.0.10");
    let start = Instant::now();
    while !file.exists() {
        assert!(start.elapsed() < Duration::from_secs(7), "the file is written at most every five seconds");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(first);
    // The API does not reply: the server waits two seconds for it.
    for resource in ["services", "endpointslices", "namespaces"] {
        api.fault(resource, Fault::Silence);
    }
    let silent = Follower::start(&api.kubeconfig(), &["--saved", saved]);
    assert_eq!(silent.ask(API), "SERVFAIL", "the API may still reply");
    silent.wait_for_answer_within(API, "10.96.0.10", Duration::from_secs(3));
    drop(silent);
    // The API is unreachable: saved facts are served at once, and /ready reports it.
    api.kill();
    let second = Follower::start(&api.kubeconfig(), &["--saved", saved]);
    second.wait_for_answer_within(API, "10.96.0.10", Duration::from_secs(1));
    assert_eq!(second.ask("10-1-0-2.db.web.svc.cluster.local A"), "10.1.0.2");
    assert_eq!(second.ask("nope.web.svc.cluster.local A"), "NXDOMAIN");
    let ready = second.admin("/ready?verbose");
    assert!(ready.starts_with("HTTP/1.1 200") && ready.contains("serving saved facts"), "{ready}");
    assert!(
        second
            .admin("/metrics")
            .lines()
            .any(|line| line.starts_with("callsign_saved_facts_served_seconds ") && !line.ends_with(" 0.0"))
    );
    // The API comes back with newer objects.
    api.put(service("api", "10.96.0.20"));
    api.delete("services", "web", "old");
    api.resume();
    let end = Instant::now() + Duration::from_secs(5);
    while second.ask(API) != "10.96.0.20" {
        assert_eq!(sorted(&second.ask("db.web.svc.cluster.local A")), "10.1.0.1 10.1.0.2", "answers have no gap");
        assert!(Instant::now() < end, "caught up within five seconds");
    }
    second.wait_for_answer("old.web.svc.cluster.local A", "NXDOMAIN");
    while second.admin("/ready?verbose").contains("saved facts") {
        assert!(Instant::now() < end, "every resource is synced within five seconds");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_damaged_or_foreign_file_is_refused_and_not_overwritten() {
    let scratch = Scratch::folder("refused");
    let good = {
        let api = with_api(WatchListSupport::Yes);
        let path = scratch.0.join("good");
        let follower = Follower::start(&api.kubeconfig(), &["--saved", path.to_str().unwrap()]);
        follower.wait_for_answer(API, "10.96.0.10");
        let start = Instant::now();
        while !path.exists() {
            assert!(start.elapsed() < Duration::from_secs(7));
            std::thread::sleep(Duration::from_millis(20));
        }
        std::fs::read(path).unwrap()
    };
    let flipped: Vec<u8> = String::from_utf8(good.clone()).unwrap().replace("10.96.0.10", "10.96.0.19").into_bytes();
    let newer = String::from_utf8(good.clone()).unwrap().replace("\"version\":1", "\"version\":99").into_bytes();
    let longer = [&good[..], b"more\n"].concat();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("half of the file", good[..good.len() / 2].to_vec(), "damaged"),
        ("without its checksum", good[..good.len() - 65].to_vec(), "damaged"),
        ("one address changed", flipped, "damaged"),
        ("data after the checksum", longer, "damaged"),
        ("another version", newer, "not a file of saved facts"),
        ("another program's file", b"root:x:0:0:root:/root:/bin/bash\n".to_vec(), "not a file of saved facts"),
        ("an empty file", Vec::new(), "not a file of saved facts"),
    ];
    for (case, octets, error) in cases {
        let path = scratch.0.join("file");
        std::fs::write(&path, &octets).unwrap();
        let refused = callsign::cluster::snapshot::read(&path).unwrap_err().to_string();
        assert!(refused.contains(error) && refused.contains("file"), "{case}: {refused}");
        assert_eq!(std::fs::read(&path).unwrap(), octets, "{case}");
    }
    // A server with the wrong --saved does not overwrite the file of another program.
    let path = scratch.file("passwd", "root:x:0:0:root:/root:/bin/bash\n");
    let api = with_api(WatchListSupport::Yes);
    let follower = Follower::start(&api.kubeconfig(), &["--saved", path.to_str().unwrap()]);
    follower.wait_for_answer(API, "10.96.0.10");
    std::thread::sleep(Duration::from_millis(500));
    assert!(std::fs::read_to_string(path).unwrap().starts_with("root:"));
}

#[test]
fn metrics_measure_the_delay_from_a_change_to_its_answer() {
    let api = with_api(WatchListSupport::Yes);
    api.put(json!({"kind": "Service", "metadata": {"name": "db", "namespace": "web"}, "spec": {"clusterIP": "None"}}));
    let follower = Follower::of(&api);
    follower.wait_for_answer(API, "10.96.0.10");
    let mut told = slice("db-1", "db", &["10.1.0.1"]);
    told["metadata"]["annotations"] =
        json!({"endpoints.kubernetes.io/last-change-trigger-time": "2020-01-01T00:00:00Z"});
    api.put(told);
    follower.wait_for_answer("db.web.svc.cluster.local A", "10.1.0.1");
    let metrics = follower.admin("/metrics");
    let name = "callsign_kubernetes_dns_programming_duration_seconds";
    assert!(metrics.contains(&format!("{name}_count{{from=\"trigger\"}} 1")), "{metrics}");
    assert!(metrics.contains(&format!("{name}_count{{from=\"event\"}} 1")), "{metrics}");
    assert!(metrics.contains("callsign_source_age_seconds{part=\"endpointslices\"}"), "{metrics}");
}

#[test]
fn failures_are_reported_and_retried_with_backoff() {
    for (case, fault, told) in [
        ("401", Fault::Status(401, "Unauthorized".into()), "401"),
        ("403", Fault::Status(403, "services is forbidden".into()), "forbidden"),
        ("500", Fault::Status(500, "etcd is away".into()), "etcd is away"),
        ("an HTML page", Fault::Status(503, "<html>Service Unavailable</html>".into()), "503"),
        ("a truncated JSON object", Fault::Reset, "cannot reach the API"),
        ("an ERROR event", Fault::ErrorEvent(500), "something broke"),
        ("a line that is not JSON", Fault::Body("what?\n".into()), "invalid watch event"),
    ] {
        let api = with_api(WatchListSupport::Yes);
        let follower = Follower::of(&api);
        follower.wait_for_answer(API, "10.96.0.10");
        for _ in 0..6 {
            api.fault("services", fault.clone());
        }
        let requests_before = api.requests().len();
        api.break_watches();
        let start = Instant::now();
        while !follower.admin("/ready?verbose").contains(told) {
            assert_eq!(follower.ask(API), "10.96.0.10", "{case}: the last good zone is served");
            assert!(start.elapsed() < Duration::from_secs(10), "{case}: {}", follower.admin("/ready?verbose"));
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_secs(1));
        let requests = api.requests().len() - requests_before;
        assert!(requests < 15, "{case}: {requests} requests within a second");
        assert_eq!(follower.ask(API), "10.96.0.10", "{case}");
    }
}

/// An API that rejects every watch from its own list must not cause endless relists.
#[test]
fn repeated_410_responses_do_not_cause_a_relist_storm() {
    let api = with_api(WatchListSupport::Yes);
    let follower = Follower::of(&api);
    follower.wait_for_answer(API, "10.96.0.10");
    for _ in 0..40 {
        api.fault("services", Fault::ErrorEvent(410));
    }
    let requests_before = api.requests().len();
    api.break_watches();
    std::thread::sleep(Duration::from_secs(2));
    let requests = api.requests().len() - requests_before;
    assert!(requests < 20, "{requests} requests within two seconds");
    assert_eq!(follower.ask(API), "10.96.0.10", "the last good zone is served");
    assert!(follower.admin("/ready?verbose").contains("(410 Gone)"));
}

#[test]
fn null_and_invalid_list_items_are_skipped() {
    for body in [
        r#"{"kind":"List","metadata":{"resourceVersion":"102"},"items":null}"#,
        r#"{"kind":"List","metadata":{"resourceVersion":"102"},"items":[null, {"spec": {}}, {"metadata": {}}, {"metadata": {"name": ""}}]}"#,
    ] {
        let api = with_api(WatchListSupport::Refused);
        // The API refuses the streamed list, then returns a page at the latest resource version.
        api.fault("services", Fault::Status(422, "Invalid".into()));
        api.fault("services", Fault::Body(body.into()));
        let follower = Follower::of(&api);
        follower.wait_for_answer("nope.web.svc.cluster.local A", "NXDOMAIN");
        assert_eq!(follower.ask(API), "NXDOMAIN", "the list is authoritative");
        api.put(service("api", "10.96.0.20"));
        follower.wait_for_answer(API, "10.96.0.20");
    }
}

/// The expected answers: Services and endpoints, updated together with the scripted API.
#[derive(Default)]
struct Model {
    services: BTreeMap<String, String>,
    slices: BTreeMap<String, (String, Vec<String>)>,
}

impl Model {
    fn answer(&self, name: &str) -> String {
        match self.services.get(name).map(String::as_str) {
            None => "NXDOMAIN".to_owned(),
            Some("None") => {
                let mut all: Vec<&String> =
                    self.slices.values().filter(|(of, _)| of == name).flat_map(|(_, addresses)| addresses).collect();
                all.sort();
                all.dedup();
                if all.is_empty() {
                    "NXDOMAIN".to_owned()
                } else {
                    all.iter().map(|address| address.as_str()).collect::<Vec<_>>().join(" ")
                }
            }
            Some(address) => address.to_owned(),
        }
    }
}

fn sorted(answer: &str) -> String {
    let mut parts: Vec<&str> = answer.split(' ').collect();
    parts.sort_unstable();
    parts.join(" ")
}

/// Random steps create, change and delete objects, compact the API's history, inject faults, and restart either side.
/// Whenever the server settles, it answers as the model does. CALLSIGN_SEED replays a run, CALLSIGN_STEPS sets its
/// length.
#[test]
fn a_random_walk_converges_to_the_model() {
    let number =
        |name: &str, default: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let seed = number("CALLSIGN_SEED", std::process::id().into());
    let steps = number("CALLSIGN_STEPS", 1000);
    println!("CALLSIGN_SEED={seed} CALLSIGN_STEPS={steps}");
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut dice = move |sides: u64| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    };
    let mut api = Api::start(if dice(2) == 0 { WatchListSupport::Yes } else { WatchListSupport::Refused });
    api.put(namespace("web"));
    let mut model = Model::default();
    let mut follower = Follower::of(&api);
    let mut away = false;
    for step in 0..steps {
        let name = format!("s{}", dice(12));
        match dice(100) {
            0..30 => {
                let address = format!("10.96.{}.{}", dice(200), 1 + dice(200));
                api.put(service(&name, &address));
                model.services.insert(name, address);
            }
            30..40 => {
                api.put(json!({"kind": "Service", "metadata": {"name": name, "namespace": "web"}, "spec": {"clusterIP": "None"}}));
                model.services.insert(name, "None".to_owned());
            }
            40..55 => {
                api.delete("services", "web", &name);
                model.services.remove(&name);
            }
            55..78 => {
                let of = format!("s{}", dice(12));
                let addresses: Vec<String> = (0..dice(4)).map(|_| format!("10.1.0.{}", 1 + dice(30))).collect();
                let slice_name = format!("slice-{}", dice(10));
                api.put(slice(&slice_name, &of, &addresses.iter().map(String::as_str).collect::<Vec<_>>()));
                model.slices.insert(slice_name, (of, addresses));
            }
            78..86 => {
                let slice_name = format!("slice-{}", dice(10));
                api.delete("endpointslices", "web", &slice_name);
                model.slices.remove(&slice_name);
            }
            86..90 => api.break_watches(),
            90..93 => {
                api.gone_as_event(dice(2) == 0);
                api.compact();
                api.break_watches();
            }
            // Backoff grows with every failure in a row, so the number of pending faults is small.
            93..95 if api.faults_left() < 3 => {
                let resource = ["services", "endpointslices"][dice(2) as usize];
                let faults = [
                    Fault::Status(500, "odd".into()),
                    Fault::Reset,
                    Fault::Body("{".into()),
                    Fault::ErrorEvent(410),
                    Fault::ErrorEvent(500),
                    Fault::RetryAfter(429, 0),
                ];
                api.fault(resource, faults[dice(faults.len() as u64) as usize].clone());
                api.break_watches();
            }
            95 if dice(4) == 0 => {
                if away {
                    api.resume()
                } else {
                    api.kill()
                }
                away = !away;
            }
            96 if dice(8) == 0 && !away => {
                drop(follower);
                follower = Follower::of(&api);
            }
            97 if !away => {
                // Wait until every answer equals that of the model.
                for n in 0..12 {
                    let name = format!("s{n}");
                    let expected = model.answer(&name);
                    let question = format!("{name}.web.svc.cluster.local A");
                    let start = Instant::now();
                    while sorted(&follower.ask(&question)) != sorted(&expected) {
                        assert!(
                            start.elapsed() < Duration::from_secs(40),
                            "seed {seed}, step {step}: {question}: {}, not {expected}\n{}",
                            follower.ask(&question),
                            follower.admin("/ready?verbose")
                        );
                        std::thread::sleep(Duration::from_millis(2));
                    }
                }
            }
            _ => {}
        }
    }
    if away {
        api.resume();
    }
    for n in 0..12 {
        let expected = model.answer(&format!("s{n}"));
        let start = Instant::now();
        while sorted(&follower.ask(&format!("s{n}.web.svc.cluster.local A"))) != sorted(&expected) {
            let found = follower.ask(&format!("s{n}.web.svc.cluster.local A"));
            let verbose = || follower.admin("/ready?verbose");
            assert!(
                start.elapsed() < Duration::from_secs(40),
                "seed {seed}: s{n} is {found}, not {expected}, at the end\n{}",
                verbose()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
