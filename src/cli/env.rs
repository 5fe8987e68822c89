//! `callsign env`: the variables that tell a Service where others are.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::{Failure, NO, UNAVAILABLE, print, source};
use crate::config::{NameArgs, SourceArgs};
use crate::report::Catalog;
use crate::report::links::Style;

pub(super) const EXAMPLES: &str = "\
Examples:
  callsign env --for web/web --manifests deploy/demo
  callsign env --for web -n web --link api --manifests deploy/demo
  callsign env --for web/web --out .env --watch --kubeconfig ~/.kube/config";

/// Flags of `callsign env`.
#[derive(Args, Clone, Debug)]
pub(super) struct EnvArgs {
    /// The Service that links to others
    #[arg(long = "for", value_name = "[NS/]SERVICE")]
    service: String,
    /// What it links to (repeatable) [default: its annotation callsign.dev/links]
    #[arg(long = "link", value_name = "NAME", value_delimiter = ',')]
    links: Vec<String>,
    /// Which variables, and what they hold
    #[arg(long, value_enum, default_value_t = Style::Plain)]
    style: Style,
    /// Write to this file, whole or not at all
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Go on, and write the file again when something changes
    #[arg(long, short = 'w', requires = "out")]
    watch: bool,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    names: NameArgs,
}

/// How often a watched cluster is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Prints or writes them.
pub(super) fn run(args: &EnvArgs) -> Result<(), Failure> {
    if args.watch {
        return watch(args);
    }
    let cluster = source::read(&args.source, &args.names)?;
    let text = variables(args, &cluster.catalog)?;
    match &args.out {
        None => print(&text),
        Some(path) => write(path, &text),
    }
}

/// The file's text; everything that is wrong, a line each.
fn variables(args: &EnvArgs, catalog: &Catalog) -> Result<String, Failure> {
    let service = catalog.find(&args.service, args.names.namespace.as_deref()).map_err(|why| Failure::new(NO, why))?;
    let links = if args.links.is_empty() { catalog.links_of(&service) } else { args.links.clone() };
    match catalog.variables(&service, &links, args.style) {
        Ok(variables) => Ok(variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect()),
        Err(wrong) => {
            let lines: Vec<String> = wrong.iter().map(ToString::to_string).collect();
            Err(Failure::new(NO, lines.join("\ncallsign: ")))
        }
    }
}

/// Writes a file by the way of another, so that readers find the old one or the new one.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |why: std::io::Error| Failure::new(UNAVAILABLE, format!("--out {}: {why}", path.display()));
    let name = path.file_name().ok_or_else(|| failed(std::io::ErrorKind::InvalidInput.into()))?;
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}", std::process::id()));
    let beside = path.with_file_name(beside);
    let whole = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    whole().map_err(|why| {
        // Nothing half-written stays.
        let _ = std::fs::remove_file(&beside);
        failed(why)
    })
}

/// Writes the file whenever its text changes. A link that breaks leaves the last good file, and says so.
fn watch(args: &EnvArgs) -> Result<(), Failure> {
    let Some(path) = &args.out else { return Ok(()) };
    let live = source::follow(&args.source, &args.names)?;
    let mut written: Option<Result<String, String>> = None;
    loop {
        let found = variables(args, &live.catalog()?).map_err(|failure| failure.line);
        if written.as_ref() != Some(&found) {
            match &found {
                Ok(text) => {
                    write(path, text)?;
                    print(&format!("{}: {} variables\n", path.display(), text.lines().count()))?;
                }
                Err(why) => tracing::warn!(file = %path.display(), why, "the file is left as it is"),
            }
            written = Some(found);
        }
        live.wait(LOOK);
    }
}
