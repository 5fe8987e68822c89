//! `callsign env`: the variables that tell a Service where others are.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Failure, NO, UNAVAILABLE, USAGE, print, source};
use crate::config::{NameArgs, SourceArgs};
use crate::report::Catalog;
use crate::report::links::{Style, written};

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

/// Prints or writes them.
pub(super) fn run(args: &EnvArgs) -> Result<(), Failure> {
    if args.watch {
        return watch(args);
    }
    let cluster = source::read(&args.source, &args.names)?;
    let text = variables(args, &cluster.catalog, cluster.told_namespace(&args.names).as_deref())?;
    match &args.out {
        None => print(&text),
        Some(path) => write(path, &text),
    }
}

/// The file's text; everything that is wrong, a line each.
fn variables(args: &EnvArgs, catalog: &Catalog, namespace: Option<&str>) -> Result<String, Failure> {
    let service = catalog.find(&args.service, namespace).map_err(|error| Failure::new(NO, error))?;
    let told: Vec<String> = args.links.iter().flat_map(|text| written(text)).collect();
    let links = if told.is_empty() { catalog.links_of(&service) } else { told };
    match catalog.variables(&service, &links, args.style) {
        Ok(variables) => Ok(variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect()),
        Err(wrong) => {
            let lines: Vec<String> = wrong.iter().map(ToString::to_string).collect();
            Err(Failure::new(NO, lines.join("\ncallsign: ")))
        }
    }
}

/// Writes a file by the way of another, so that readers find the old one or the new one. What a link leads to is written,
/// not the link; what is no file (a pipe, a device) takes the text as it comes; `-` is standard output.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    if path.as_os_str() == "-" {
        return print(text);
    }
    let failed = |error: std::io::Error| Failure::new(UNAVAILABLE, format!("--out {}: {error}", path.display()));
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let there = std::fs::metadata(&path).ok();
    if there.as_ref().is_some_and(std::fs::Metadata::is_dir) {
        return Err(Failure::new(USAGE, format!("--out {} is a folder; name a file in it", path.display())));
    }
    if there.as_ref().is_some_and(|there| !there.is_file()) {
        let mut open = std::fs::File::options().write(true).open(&path).map_err(failed)?;
        return open.write_all(text.as_bytes()).map_err(failed);
    }
    let name = path.file_name().ok_or_else(|| failed(std::io::ErrorKind::InvalidInput.into()))?;
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}", std::process::id()));
    let beside = path.with_file_name(beside);
    let whole = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&beside)?;
        if let Some(there) = &there {
            file.set_permissions(there.permissions())?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, &path)
    };
    whole().map_err(|error| {
        // Nothing half-written stays.
        let _ = std::fs::remove_file(&beside);
        failed(error)
    })
}

/// Writes the file whenever its text changes. A link that breaks leaves the last good file, and says so.
fn watch(args: &EnvArgs) -> Result<(), Failure> {
    let Some(path) = &args.out else { return Ok(()) };
    let live = source::follow(&args.source, &args.names)?;
    let namespace = live.told_namespace(&args.names);
    let mut last: Option<Result<String, String>> = None;
    loop {
        let found = variables(args, &live.catalog()?, namespace.as_deref()).map_err(|failure| failure.line);
        if last.as_ref() != Some(&found) {
            match &found {
                Ok(text) => {
                    write(path, text)?;
                    print(&format!("{}: {} variables\n", path.display(), text.lines().count()))?;
                }
                Err(error) => tracing::warn!(file = %path.display(), error, "the file is left as it is"),
            }
            last = Some(found);
        }
        live.wait();
    }
}
