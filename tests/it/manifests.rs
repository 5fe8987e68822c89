//! Manifests as a source: folders, links and files that change in every way, and files that no one should have written.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use callsign::cluster::manifests::read_text;

use crate::common::Scratch;
use crate::common::process::{Server, run};

fn service(name: &str, address: &str) -> String {
    format!("kind: Service\nmetadata: {{name: {name}, namespace: web}}\nspec: {{clusterIP: {address}}}\n")
}

const SECOND: Duration = Duration::from_secs(1);
const API: &str = "api.web.svc.cluster.local A";

fn serve(path: &Path) -> Server {
    Server::start(&["--manifests", path.to_str().unwrap()], None)
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(5), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_folder_that_vanishes_is_a_failing_source_and_not_an_empty_cluster() {
    let scratch = Scratch::folder("vanishing");
    let folder = scratch.0.join("manifests");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("api.yaml"), service("api", "10.96.0.10")).unwrap();
    let server = serve(&folder);
    std::fs::rename(&folder, scratch.0.join("elsewhere")).unwrap();
    until("the source fails", || server.get("/ready?verbose").contains("No such file"));
    assert!(server.get("/metrics").contains("callsign_source_in_trouble 1"));
    std::thread::sleep(Duration::from_millis(400));
    assert!(server.ask(API).contains("10.96.0.10"), "the last table stays");
    // Another folder takes its place.
    let next = scratch.0.join("next");
    std::fs::create_dir(&next).unwrap();
    std::fs::write(next.join("api.yaml"), service("api", "10.96.0.11")).unwrap();
    std::fs::rename(next, &folder).unwrap();
    server.wait_for_answer(API, "10.96.0.11", SECOND);
    std::fs::write(folder.join("api.yaml"), service("api", "10.96.0.12")).unwrap();
    server.wait_for_answer(API, "10.96.0.12", SECOND);
    until("the source has recovered", || !server.get("/ready?verbose").contains("No such file"));
}

#[test]
fn replaced_links_and_new_subfolders_are_read_at_once() {
    let scratch = Scratch::folder("links");
    for (version, address) in [("v1", "10.96.0.1"), ("v2", "10.96.0.2")] {
        std::fs::create_dir(scratch.0.join(version)).unwrap();
        std::fs::write(scratch.0.join(version).join("api.yaml"), service("api", address)).unwrap();
    }
    let current = scratch.0.join("current");
    symlink("v1", &current).unwrap();
    let server = serve(&current);
    assert!(server.ask(API).contains("10.96.0.1"));
    symlink("v2", scratch.0.join("new")).unwrap();
    std::fs::rename(scratch.0.join("new"), &current).unwrap();
    server.wait_for_answer(API, "10.96.0.2", SECOND);
    std::fs::write(scratch.0.join("v2/api.yaml"), service("api", "10.96.0.3")).unwrap();
    server.wait_for_answer(API, "10.96.0.3", SECOND);
    // A subfolder, and one in it; hidden ones are not read, and a link that leads back ends.
    std::fs::create_dir_all(current.join("sub/deeper")).unwrap();
    std::fs::create_dir(current.join(".hidden")).unwrap();
    std::fs::write(current.join(".hidden/hidden.yaml"), service("hidden", "10.96.0.9")).unwrap();
    symlink("../..", current.join("sub/deeper/back")).unwrap();
    std::fs::write(current.join("sub/deeper/db.yaml"), service("db", "10.96.0.4")).unwrap();
    server.wait_for_answer("db.web.svc.cluster.local A", "10.96.0.4", SECOND);
    assert!(server.ask("hidden.web.svc.cluster.local A").contains("NXDOMAIN"));
    std::fs::write(current.join("sub/deeper/db.yaml"), service("db", "10.96.0.5")).unwrap();
    server.wait_for_answer("db.web.svc.cluster.local A", "10.96.0.5", SECOND);
    std::fs::remove_dir_all(current.join("sub")).unwrap();
    server.wait_for_answer("db.web.svc.cluster.local A", "NXDOMAIN", SECOND);
}

#[test]
fn a_file_that_is_emptied_before_it_is_written_loses_nothing() {
    let scratch = Scratch::folder("emptied");
    let path =
        scratch.file("api.yaml", &format!("{}---\n{}", service("api", "10.96.0.10"), service("db", "10.96.0.9")));
    let server = serve(&scratch.0);
    for (case, emptied) in [("an empty file", ""), ("a part of it", "kind: Service\n")] {
        std::fs::write(&path, emptied).unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(150) {
            assert!(server.ask(API).contains("10.96.0.10"), "{case}");
        }
        let text = format!("{}---\n{}", service("api", "10.96.0.10"), service("db", "10.96.0.9"));
        std::fs::write(&path, text).unwrap();
        std::thread::sleep(Duration::from_millis(400));
        assert!(server.ask(API).contains("10.96.0.10"), "{case}");
    }
    // A file that stays empty counts.
    std::fs::write(&path, "").unwrap();
    server.wait_for_answer(API, "NXDOMAIN", SECOND);
}

#[test]
fn a_file_that_cannot_be_decoded_is_reported_and_the_others_apply() {
    let scratch = Scratch::folder("undecodable");
    scratch.file("good.yaml", &service("api", "10.96.0.10"));
    std::fs::write(scratch.0.join("latin.yaml"), b"kind: Service\nmetadata: {name: caf\xe9}\n").unwrap();
    std::fs::write(scratch.0.join("binary.json"), [0u8, 1, 2, 0xff, 0xfe]).unwrap();
    std::fs::create_dir(scratch.0.join("folder.yaml")).unwrap();
    symlink("nowhere", scratch.0.join("dangling.yaml")).unwrap();
    scratch.file("twice.yaml", &service("api", "10.96.0.11"));
    let server = serve(&scratch.0);
    let ready = server.get("/ready?verbose");
    assert!(ready.contains("latin.yaml:2: not text in UTF-8 (octet 0xe9)"), "{ready}");
    assert!(ready.contains("binary.json:1: not text in UTF-8"), "{ready}");
    assert!(server.ask(API).contains("10.96.0.11"), "the last of two declarations counts");
    // A file that becomes undecodable retains its objects.
    std::fs::write(scratch.0.join("twice.yaml"), [b'x'; 300].iter().chain(&[0xff]).copied().collect::<Vec<u8>>())
        .unwrap();
    until("the file is reported", || server.get("/ready?verbose").contains("twice.yaml:1: not text"));
    assert!(server.ask(API).contains("10.96.0.11"));
    server.signal("-INT");
    let (_, log) = server.wait();
    assert!(log.contains("declared in") && log.contains("good.yaml and again in"), "{log}");
}

#[test]
fn an_edit_of_one_file_of_a_thousand_is_answered() {
    let scratch = Scratch::folder("thousand");
    for n in 0..1000 {
        scratch.file(&format!("s{n}.yaml"), &service(&format!("s{n}"), &format!("10.96.{}.{}", n / 250, 1 + n % 250)));
    }
    let server = serve(&scratch.0);
    for n in 0..3 {
        let address = format!("10.97.0.{}", n + 1);
        scratch.file("s500.yaml", &service("s500", &address));
        server.wait_for_answer("s500.web.svc.cluster.local A", &address, SECOND);
    }
    // A file that is replaced all the time does not hide the others.
    let busy = std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            for n in 0..150 {
                scratch.file(".s1.new", &service("s1", &format!("10.98.0.{}", 1 + n % 250)));
                std::fs::rename(scratch.0.join(".s1.new"), scratch.0.join("s1.yaml")).unwrap();
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        scratch.file("s2.yaml", &service("s2", "10.97.0.9"));
        server.wait_for_answer("s2.web.svc.cluster.local A", "10.97.0.9", 2 * SECOND);
        busy.join()
    });
    busy.unwrap();
    server.wait_for_answer("s1.web.svc.cluster.local A", "10.98.0.150", 2 * SECOND);
}

#[test]
fn streams_are_read_once() {
    let scratch = Scratch::folder("stream");
    let fifo = scratch.0.join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let path = fifo.clone();
    let writer = std::thread::spawn(move || std::fs::write(path, service("api", "10.96.0.10")).unwrap());
    let output = run(&["explain", "api.web", "--manifests", fifo.to_str().unwrap()]);
    writer.join().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("10.96.0.10"));
    // In a folder, a pipe would block the others.
    scratch.file("api.yaml", &service("api", "10.96.0.11"));
    std::fs::rename(&fifo, scratch.0.join("fifo.yaml")).unwrap();
    assert!(serve(&scratch.0).ask(API).contains("10.96.0.11"));
}

#[test]
fn texts_that_are_no_manifests_say_so_in_one_line() {
    let deep = "[".repeat(100_000);
    let deep_items = format!("kind: List\nitems: {}", "[".repeat(100_000));
    let bomb = (1..40).fold("a0: &a0 [x,x]\n".to_owned(), |text, n| {
        format!("{text}a{n}: &a{n} [{}]\n", format!("*a{},", n - 1).repeat(9))
    });
    for (case, text, line, expected) in [
        ("a scalar", "hello", Some(1), "expected an object"),
        ("a list", "- a\n- b\n", Some(1), "expected an object"),
        (
            "no marker between objects",
            "kind: Service\nmetadata: {name: a}\nkind: Service\n",
            Some(3),
            "is a '---' missing",
        ),
        ("an error in the third document", "a: 1\n---\nb: 2\n---\nkind: [\n", None, ""),
        ("a tab", "kind: Service\nmetadata:\n\tname: a\n", Some(3), ""),
        ("JSON that ends early", "{\"kind\": \"Service\",\n\"metadata\":", Some(2), "EOF"),
        ("JSON followed by something else", "{\"kind\": \"X\"}\n]", Some(2), "expected"),
        ("deep nesting", &deep, Some(1), ""),
        ("deep nesting of items", &deep_items, None, ""),
        (
            "an alias bomb",
            &format!(
                "kind: Service\nspec: &s [a]\nmetadata:\n{}",
                bomb.replace("\na", "\n  a").replace("a0: &", "  a0: &")
            ),
            None,
            "",
        ),
    ] {
        let start = Instant::now();
        let error = read_text(text).map(|_| ()).expect_err(case).to_string();
        assert!(start.elapsed() < Duration::from_secs(10), "{case}");
        assert!(error.len() < 400 && error.lines().count() == 1, "{case}: {error}");
        assert!(error.contains(expected), "{case}: {error}");
        assert!(!error.contains("Options"), "{case}: {error}");
        if let Some(line) = line {
            assert!(error.starts_with(&format!("text:{line}: ")), "{case}: {error}");
        }
    }
    // What else may stand in a file.
    for (case, text, count) in [
        ("comments", "# nothing\n---\n# here\n", 0),
        ("other kinds", "kind: ConfigMap\ndata: {kind: Service}\n", 0),
        ("a document without a kind", "replicas: 2\n", 0),
        ("a mark of the order of octets", "\u{feff}kind: Namespace\nmetadata: {name: a}\n", 1),
        ("a list whose kind comes last", "items:\n- kind: Namespace\n  metadata: {name: a}\nkind: List\n", 1),
        ("a typed list", "items: [{metadata: {name: a}}, {metadata: {name: b}}]\nkind: NamespaceList\n", 2),
        ("a list in a list", "kind: List\nitems: [{kind: List, items: [{kind: Namespace, metadata: {name: a}}]}]\n", 1),
        ("items that are no objects", "kind: ConfigMap\nitems: {a: 1}\n", 0),
        (
            "several in JSON",
            "{\"kind\":\"Namespace\",\"metadata\":{\"name\":\"a\"}}\n{\"kind\":\"Namespace\",\"metadata\":{\"name\":\"b\"}}",
            2,
        ),
        ("an end marker", "kind: Namespace\nmetadata: {name: a}\n...\n---\nkind: Namespace\nmetadata: {name: b}\n", 2),
    ] {
        let (changes, rejected) = read_text(text).unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!((changes.len(), rejected.len()), (count, 0), "{case}");
    }
}

#[test]
fn a_renamed_file_changes_no_address() {
    let scratch = Scratch::folder("renamed");
    scratch.file("a.yaml", "kind: Service\nmetadata: {name: api, namespace: web}\n");
    let server = serve(&scratch.0);
    let before = server.ask(API);
    assert!(before.contains(" 10.96."), "a generated address: {before}");
    for (from, to) in [("a.yaml", "b.yaml"), ("b.yaml", "a.yaml")] {
        std::fs::rename(scratch.0.join(from), scratch.0.join(to)).unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(600) {
            assert_eq!(server.ask(API), before, "{from} becomes {to}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    // Nor does a copy.
    std::fs::copy(scratch.0.join("a.yaml"), scratch.0.join("c.yaml")).unwrap();
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(server.ask(API), before);
    server.signal("-INT");
    let (_, log) = server.wait();
    assert!(
        log.contains("a.yaml and again in") && !log.contains("b.yaml"),
        "only the copy is a second declaration: {log}"
    );
}
