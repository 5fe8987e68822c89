//! `callsign doctor`: finds problems with the names of a cluster.

use std::fmt::Write as _;

use clap::Args;

use super::{Failure, Output, json, paint, print, source};
use crate::cluster::object::Rejected;
use crate::config::{NameArgs, SourceArgs};
use crate::exit::NO;
use crate::report::doctor::{self, Finding, Severity};

pub(super) const EXAMPLES: &str = "\
Examples:
  callsign doctor --kubeconfig ~/.kube/config
  callsign doctor --manifests deploy/demo -o json";

/// Flags of `callsign doctor`.
#[derive(Args, Clone, Debug)]
pub(super) struct DoctorArgs {
    /// Check all namespaces, even if -n is set (the default without -n)
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Print in this format
    #[arg(long, short = 'o', value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    names: NameArgs,
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
    findings.sort();
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    let text = match args.output {
        Output::Json => json(&findings)?,
        Output::Text => {
            let (mut text, colours) = (String::new(), paint::is_enabled());
            for finding in &findings {
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
            let services = count(cluster.catalog.len(), "Service");
            let _ = writeln!(text, "{services}: {}, {}", count(errors, "error"), count(warnings, "warning"));
            text
        }
    };
    print(&text)?;
    if errors > 0 { Err(Failure::silent(NO)) } else { Ok(()) }
}
