//! `callsign doctor`: finds problems with the names of a cluster.

use std::fmt::{Display, Write as _};
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use clap::Args;

use super::{CLEAR, Failure, Output, json, paint, print, source, warn};
use crate::cluster::object::Rejected;
use crate::cluster::source::Source;
use crate::config::{NameArgs, SourceArgs};
use crate::exit::{NO, UNAVAILABLE, USAGE};
use crate::report::doctor::{self, Finding, Severity};
use crate::report::lint::Lint;
use crate::report::near;
use crate::report::server::{self, ServerStatus};

pub(super) const EXAMPLES: &str = "\
Examples:
  callsign doctor --kubeconfig ~/.kube/config
  callsign doctor --manifests deploy/demo -o json
  callsign doctor --manifests deploy/demo --watch
  callsign doctor --server 127.0.0.1:9153         a running server: its source, upstreams and busiest clients";

/// Flags of `callsign doctor`.
#[derive(Args, Clone, Debug)]
pub(super) struct DoctorArgs {
    /// Check all namespaces, even if -n is set (the default without -n)
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Print in this format
    #[arg(long, short = 'o', value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Also check a running server, by the address of its --admin: its source, upstreams and busiest clients
    #[arg(long, value_name = "HOST:PORT")]
    server: Option<String>,
    /// Keep running, and print the findings whenever they change
    #[arg(long, short = 'w')]
    watch: bool,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    names: NameArgs,
}

/// Longest response of a server that is read, in octets.
const MAX_RESPONSE: u64 = 1 << 20;
/// Time allowed for connecting to a server, and for each part of its response.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Interval between checks of manifests, with `--watch`.
const CHECK_MANIFESTS: Duration = Duration::from_secs(1);
/// Interval between checks of a cluster, with `--watch`.
const CHECK_CLUSTER: Duration = Duration::from_secs(30);
/// Number of clients that are listed.
const LISTED: usize = 10;

/// Reads the state of a server from its admin address.
fn status_of(server: &str) -> Result<ServerStatus, Failure> {
    let found = server.to_socket_addrs().map(|mut all| all.next());
    let Ok(Some(address)) = found else {
        return Err(Failure::new(USAGE, format!("--server '{server}' is not an address; write HOST:PORT")));
    };
    let get = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        // HTTP/1.0: the response is neither chunked nor followed by another one.
        write!(stream, "GET /api/v1/status HTTP/1.0\r\nHost: {server}\r\n\r\n")?;
        let mut response = String::new();
        stream.take(MAX_RESPONSE).read_to_string(&mut response)?;
        Ok(response)
    };
    let failed = |reason: &dyn Display| Failure::new(UNAVAILABLE, format!("cannot ask {server}: {reason}"));
    let response = get().map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => failed(&"it does not reply over HTTP; use the address of --admin"),
        _ => failed(&error),
    })?;
    let Some((head, body)) = response.split_once("\r\n\r\n") else {
        return Err(failed(&"it does not speak HTTP; use the address of --admin"));
    };
    if head.split(' ').nth(1) != Some("200") {
        return Err(failed(&body.trim()));
    }
    serde_json::from_str(body).map_err(|error| failed(&error))
}

/// Returns the finding for a rejected object or annotation. `place` says where it is written, in parentheses.
fn rejected(rejected: &Rejected, place: &str) -> Finding {
    // A bad annotation is only a warning: the Service itself is still served.
    let annotation = rejected.reason.contains("callsign.dev/");
    Finding {
        severity: if annotation { Severity::Warning } else { Severity::Error },
        code: if annotation { "invalid-annotation" } else { "invalid-object" },
        object: rejected.name.clone(),
        what: format!("this {}{place} is not valid: {}", rejected.kind, rejected.reason),
        why: match annotation {
            true if rejected.reason.contains("callsign.dev/visible-to") => {
                "the server hides the object from all other namespaces until the annotation is valid".to_owned()
            }
            true => "the server ignores the annotation, and serves the object without it".to_owned(),
            false => "the server ignores the object, and answers as if it did not exist".to_owned(),
        },
        fix: "correct the object or the annotation".to_owned(),
    }
}

/// The result of a check.
#[derive(PartialEq)]
struct Report {
    findings: Vec<Finding>,
    /// The state of the server that was asked.
    server: Option<ServerStatus>,
    /// Number of Services in the source, if there is one.
    services: Option<usize>,
}

/// Prints the findings, once or whenever they change; fails if one of them is an error.
pub(super) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    if !args.watch {
        let report = check(args)?;
        print(&report.render(args)?)?;
        let is_bad = report.findings.iter().any(|finding| finding.severity == Severity::Error);
        return if is_bad { Err(Failure::silent(NO)) } else { Ok(()) };
    }
    // Each check of a cluster lists it.
    let interval = if args.source.manifests.is_some() { CHECK_MANIFESTS } else { CHECK_CLUSTER };
    let mut shown: Option<Vec<Finding>> = None;
    loop {
        match check(args) {
            Ok(report) if shown.as_ref() != Some(&report.findings) => {
                let before = match (std::io::stdout().is_terminal(), &shown) {
                    (true, _) => CLEAR.to_owned(),
                    (false, None) => String::new(),
                    (false, Some(_)) => format!("\n--- {:.0}\n", jiff::Timestamp::now()),
                };
                print(&format!("{before}{}", report.render(args)?))?;
                shown = Some(report.findings);
            }
            Ok(_) => {}
            Err(failure) if shown.is_none() => return Err(failure),
            Err(failure) => warn(format!("{}; checking again", failure.line)),
        }
        #[allow(clippy::disallowed_methods, reason = "a command waits on its only thread")]
        std::thread::sleep(interval);
    }
}

fn check(args: &DoctorArgs) -> Result<Report, Failure> {
    let server = args.server.as_deref().map(status_of).transpose()?;
    let mut findings: Vec<Finding> = server.iter().flat_map(server::findings).collect();
    // A server alone can be asked without access to its cluster.
    let is_server_alone = server.is_some() && matches!(args.source.source(), Source::Unspecified);
    let services = match is_server_alone {
        true => None,
        false => Some(examine(args, &mut findings)?),
    };
    findings.sort();
    findings.dedup();
    Ok(Report { findings, server, services })
}

/// Adds the findings about the source; returns the number of its Services.
fn examine(args: &DoctorArgs, findings: &mut Vec<Finding>) -> Result<usize, Failure> {
    let mut lint = Lint::default();
    let (cluster, problems) = source::inspect(&args.source, &args.names, &mut |place, object| lint.add(place, object))?;
    let domains: Vec<String> =
        args.names.cluster_domains.iter().map(|domain| domain.trim_end_matches('.').to_lowercase()).collect();
    // An invalid externalName and an object that is declared twice have findings of their own.
    let others = cluster
        .rejected
        .iter()
        .filter(|rejected| !rejected.reason.starts_with("externalName") && !rejected.reason.starts_with("declared "));
    let others: Vec<Finding> =
        others.map(|object| rejected(object, &lint.place_of(object.kind, &object.name))).collect();
    let (written, causes) = lint.findings(&domains);
    let mut found = doctor::examine(&cluster.catalog, &cluster.diagnostics);
    for finding in &mut found {
        // The facts do not say why endpoints are not ready.
        let cause = causes.iter().find(|(key, _)| finding.object == key.to_string());
        if let Some((_, cause)) = cause.filter(|_| finding.code.contains("endpoint")) {
            finding.what = format!("{}: {cause}", finding.what);
        }
    }
    found.extend(written);
    found.extend(others);
    let selected = args.names.namespace().filter(|_| !args.all_namespaces);
    if let Some(namespace) = selected {
        let of = |object: &str| {
            object == namespace || object.strip_prefix(namespace).is_some_and(|rest| rest.starts_with('/'))
        };
        found.retain(|finding| finding.object.split(", ").any(of));
    }
    // What could not be read may be of any namespace.
    let is_readable = problems.is_empty();
    found.extend(problems.into_iter().map(unreadable));
    let services = cluster.catalog.len();
    match selected.filter(|namespace| !cluster.catalog.has_namespace(namespace)) {
        Some(namespace) => found.push(Finding {
            severity: Severity::Error,
            code: "unknown-namespace",
            object: namespace.to_owned(),
            what: "this namespace does not exist in the source".to_owned(),
            why: "there is nothing to check".to_owned(),
            fix: match near::closest(namespace, cluster.catalog.namespaces()) {
                Some(meant) => format!("did you mean {meant}? -A checks all namespaces"),
                None => "choose another with -n, or check all with -A".to_owned(),
            },
        }),
        None if services == 0 && is_readable && cluster.catalog.namespaces().next().is_none() => found.push(Finding {
            severity: Severity::Error,
            code: "no-services",
            object: args.source.manifests.as_ref().map_or("the cluster".to_owned(), |path| path.display().to_string()),
            what: "it has no Services".to_owned(),
            why: "there is nothing to resolve, and nothing to check".to_owned(),
            fix: "name a file or folder with Services, in files that end in .yaml, .yml or .json".to_owned(),
        }),
        None => {}
    }
    findings.extend(found);
    Ok(services)
}

/// Returns the finding for a part of the source that cannot be read.
fn unreadable(problem: String) -> Finding {
    let (object, what) = problem.split_once(": ").map_or((problem.as_str(), ""), |(object, what)| (object, what));
    let is_api = object.starts_with("cannot list");
    Finding {
        // Without pods, everything but selectors and ports is checked.
        severity: if object.ends_with(" pods") { Severity::Warning } else { Severity::Error },
        code: "unreadable",
        object: object.trim_start_matches("cannot read ").to_owned(),
        what: if what.is_empty() { "it cannot be read".to_owned() } else { what.to_owned() },
        why: match is_api {
            true => "what depends on it is not checked".to_owned(),
            false => "none of its objects is checked; a running server uses the last valid text, one that starts none"
                .to_owned(),
        },
        fix: match is_api {
            true => "allow the user to list it, in all namespaces".to_owned(),
            false => "correct or restore it, or remove it from the folder".to_owned(),
        },
    }
}

impl Report {
    /// Formats the findings, the state of a server, and a summary.
    fn render(&self, args: &DoctorArgs) -> Result<String, Failure> {
        if args.output == Output::Json {
            return json(&self.findings);
        }
        let errors = self.findings.iter().filter(|finding| finding.severity == Severity::Error).count();
        let (mut text, colours) = (String::new(), paint::is_enabled());
        for finding in &self.findings {
            let bad = finding.severity == Severity::Error;
            let word = paint::severity(if bad { "error" } else { "warning" }, bad, colours);
            let _ = writeln!(
                text,
                "{word}: {}: {} [{}]\n  why: {}\n  fix: {}\n",
                finding.object, finding.what, finding.code, finding.why, finding.fix
            );
        }
        let warnings = self.findings.len() - errors;
        let count = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
        if let Some(status) = &self.server {
            describe(status, &mut text);
        }
        let of = self.services.map(|services| count(services, "Service") + ": ").unwrap_or_default();
        let _ = writeln!(text, "{of}{}, {}", count(errors, "error"), count(warnings, "warning"));
        Ok(text)
    }
}

/// Describes a running server: what it serves, how fresh that is, whom it asks, and who asks it most.
fn describe(status: &ServerStatus, text: &mut String) {
    let _ = writeln!(text, "The server has {} Services and {} endpoints.", status.services, status.endpoints);
    if let Some(seconds) = status.saved_seconds {
        let _ = writeln!(text, "It has answered from saved facts for {seconds:.0} s.");
    }
    for resource in &status.source {
        let age = resource.age_seconds.map_or("never".to_owned(), |age| format!("{age:.1} s ago"));
        let _ = writeln!(text, "  {}: last message {age}", resource.resource);
    }
    for upstream in &status.upstreams {
        let _ = writeln!(text, "  upstream {}: {}", upstream.server, upstream.state.as_str());
    }
    if !status.clients.is_empty() {
        let _ = writeln!(text, "Busiest clients, by queries for the upstreams:");
    }
    for client in status.clients.iter().take(LISTED) {
        let namespace = if client.namespace.is_empty() { "namespace unknown" } else { &client.namespace };
        let (address, misses, refused) = (client.address, client.misses, client.refused);
        let _ = writeln!(text, "  {address} ({namespace}): {misses}, {refused} of them refused");
    }
    text.push('\n');
}
