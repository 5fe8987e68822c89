//! `callsign doctor`: what is wrong with the names of a cluster.

use std::fmt::Write as _;

use clap::{Args, ValueEnum};

use super::{Failure, NO, json, paint, print, source};
use crate::config::{NameArgs, SourceArgs};
use crate::report::doctor::{self, Severity};

pub(super) const EXAMPLES: &str = "\
Examples:
  callsign doctor --kubeconfig ~/.kube/config
  callsign doctor --manifests deploy/demo -o json";

/// `-o` of doctor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// Flags of `callsign doctor`.
#[derive(Args, Clone, Debug)]
pub(super) struct DoctorArgs {
    /// Form of the output
    #[arg(long, short = 'o', value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    names: NameArgs,
}

/// Says what is wrong; the status is that of the worst finding.
pub(super) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let cluster = source::read(&args.source, &args.names)?;
    let findings = doctor::examine(&cluster.catalog, &cluster.reports);
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    let text = match args.output {
        Output::Json => json(&findings)?,
        Output::Text => {
            let (mut text, colours) = (String::new(), paint::is_wanted());
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
