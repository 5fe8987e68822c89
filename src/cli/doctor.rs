//! `callsign doctor`: finds problems with the names of a cluster.

use std::fmt::{Display, Write as _};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use clap::Args;

use super::{Failure, Output, json, paint, print, source};
use crate::cluster::object::Rejected;
use crate::cluster::source::Source;
use crate::config::{NameArgs, SourceArgs};
use crate::exit::{NO, UNAVAILABLE};
use crate::report::clients::{self, ClientEntry};
use crate::report::doctor::{self, Finding, Severity};

pub(super) const EXAMPLES: &str = "\
Examples:
  callsign doctor --kubeconfig ~/.kube/config
  callsign doctor --manifests deploy/demo -o json
  callsign doctor --server 127.0.0.1:9153         the busiest clients of a running server";

/// Flags of `callsign doctor`.
#[derive(Args, Clone, Debug)]
pub(super) struct DoctorArgs {
    /// Check all namespaces, even if -n is set (the default without -n)
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Print in this format
    #[arg(long, short = 'o', value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Also list the busiest clients of a running server: the address of its --admin
    #[arg(long, value_name = "ADDR:PORT")]
    server: Option<SocketAddr>,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    names: NameArgs,
}

/// Longest response of a server that is read, in octets.
const MAX_RESPONSE: u64 = 1 << 20;
/// Time allowed for connecting to a server, and for each part of its response.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Number of clients that are listed.
const LISTED: usize = 10;

/// Reads the busiest clients from the admin address of a server.
fn clients_of(server: SocketAddr) -> Result<Vec<ClientEntry>, Failure> {
    let get = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        // HTTP/1.0: the response is neither chunked nor followed by another one.
        write!(stream, "GET /api/v1/clients HTTP/1.0\r\nHost: {server}\r\n\r\n")?;
        let mut response = String::new();
        stream.take(MAX_RESPONSE).read_to_string(&mut response)?;
        Ok(response)
    };
    let failed = |reason: &dyn Display| Failure::new(UNAVAILABLE, format!("cannot ask {server}: {reason}"));
    let response = get().map_err(|error| failed(&error))?;
    let Some((head, body)) = response.split_once("\r\n\r\n") else {
        return Err(failed(&"it does not speak HTTP; use the address of --admin"));
    };
    if head.split(' ').nth(1) != Some("200") {
        return Err(failed(&body.trim()));
    }
    serde_json::from_str(body).map_err(|error| failed(&error))
}

/// Returns the finding for a rejected object or annotation.
fn rejected(rejected: &Rejected) -> Finding {
    // A bad annotation is only a warning: the Service itself is still served.
    let annotation = rejected.reason.contains("callsign.dev/");
    Finding {
        severity: if annotation { Severity::Warning } else { Severity::Error },
        code: if annotation { "invalid-annotation" } else { "invalid-object" },
        object: rejected.name.clone(),
        what: format!("this {} is not valid: {}", rejected.kind, rejected.reason),
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

/// Prints the findings; fails if one of them is an error.
pub(super) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let clients = args.server.map(clients_of).transpose()?;
    // A server alone can be asked without access to its cluster.
    if let (Some(clients), Source::Unspecified) = (&clients, args.source.source()) {
        let findings: Vec<_> = clients::findings(clients).collect();
        return report(args, &findings, Some(clients), None);
    }
    let cluster = source::read_silently(&args.source, &args.names)?;
    let mut findings = doctor::examine(&cluster.catalog, &cluster.diagnostics);
    // An invalid externalName has a finding of its own.
    let others = cluster.rejected.iter().filter(|rejected| !rejected.reason.starts_with("externalName"));
    findings.extend(others.map(rejected));
    if let Some(namespace) = args.names.namespace().filter(|_| !args.all_namespaces) {
        let of = |object: &str| {
            object == namespace || object.strip_prefix(namespace).is_some_and(|rest| rest.starts_with('/'))
        };
        findings.retain(|finding| finding.object.split(", ").any(of));
    }
    findings.extend(clients.iter().flat_map(|clients| clients::findings(clients)));
    findings.sort();
    report(args, &findings, clients.as_deref(), Some(cluster.catalog.len()))
}

/// Prints the findings, the busiest clients of a server, and a summary of a cluster with this many Services.
fn report(
    args: &DoctorArgs,
    findings: &[Finding],
    clients: Option<&[ClientEntry]>,
    services: Option<usize>,
) -> Result<(), Failure> {
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    let text = match args.output {
        Output::Json => json(&findings)?,
        Output::Text => {
            let (mut text, colours) = (String::new(), paint::is_enabled());
            for finding in findings {
                let bad = finding.severity == Severity::Error;
                let word = paint::severity(if bad { "error" } else { "warning" }, bad, colours);
                let _ = writeln!(
                    text,
                    "{word}: {}: {} [{}]\n  why: {}\n  fix: {}\n",
                    finding.object, finding.what, finding.code, finding.why, finding.fix
                );
            }
            let warnings = findings.len() - errors;
            let count = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
            if let Some(clients) = clients.filter(|clients| !clients.is_empty()) {
                let _ = writeln!(text, "Busiest clients, by queries for the upstreams:");
                for client in clients.iter().take(LISTED) {
                    let namespace = if client.namespace.is_empty() { "namespace unknown" } else { &client.namespace };
                    let (address, misses, refused) = (client.address, client.misses, client.refused);
                    let _ = writeln!(text, "  {address} ({namespace}): {misses}, {refused} of them refused");
                }
                text.push('\n');
            }
            let of = services.map(|services| count(services, "Service") + ": ").unwrap_or_default();
            let _ = writeln!(text, "{of}{}, {}", count(errors, "error"), count(warnings, "warning"));
            text
        }
    };
    print(&text)?;
    if errors > 0 { Err(Failure::silent(NO)) } else { Ok(()) }
}
