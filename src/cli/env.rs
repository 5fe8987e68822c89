//! `callsign env`: generates the environment variables that link a Service to others.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Failure, print, source, warn};
use crate::atomic_file::{self, Readers};
use crate::config::{NameArgs, SourceArgs};
use crate::exit::{NO, UNAVAILABLE, USAGE};
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
    /// Generate variables for this Service
    #[arg(long = "for", value_name = "[NS/]SERVICE")]
    service: String,
    /// Link to this name, or NAME:PORT (repeatable) [default: the names in the Service's annotation callsign.dev/links]
    #[arg(long = "link", value_name = "NAME[:PORT]", value_delimiter = ',')]
    links: Vec<String>,
    /// Generate this set of variables
    #[arg(long, value_enum, default_value_t = Style::Plain)]
    style: Style,
    /// Use this scheme for all links [default: by appProtocol, the port's name, or its number]
    #[arg(long, value_name = "SCHEME", value_parser = scheme)]
    scheme: Option<String>,
    /// Write to this file, atomically, instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Keep running, and rewrite the file whenever the variables change
    #[arg(long, short = 'w', requires = "out")]
    watch: bool,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    names: NameArgs,
}

/// Checks a scheme (RFC 3986 section 3.1).
fn scheme(text: &str) -> Result<String, String> {
    let is_valid = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'-' | b'.'));
    if is_valid { Ok(text.to_ascii_lowercase()) } else { Err("write a scheme such as http, without ://".to_owned()) }
}

/// Prints the variables, or writes them to `--out`.
pub(super) fn run(args: &EnvArgs) -> Result<(), Failure> {
    if args.watch {
        return watch(args);
    }
    let cluster = source::read(&args.source, &args.names)?;
    let text = variables(args, &cluster.catalog, cluster.selected_namespace(&args.names).as_deref())?;
    match &args.out {
        None => print(&text),
        Some(path) => write(path, &text),
    }
}

/// Returns the variables, one per line. The failure has one line per problem.
fn variables(args: &EnvArgs, catalog: &Catalog, namespace: Option<&str>) -> Result<String, Failure> {
    let service = catalog.find(&args.service, namespace).map_err(|error| Failure::new(NO, error))?;
    let given: Vec<String> = args.links.iter().flat_map(|text| written(text)).collect();
    let links = if given.is_empty() { catalog.links_of(&service) } else { given };
    match catalog.variables(&service, &links, args.style, args.scheme.as_deref()) {
        Ok(variables) => Ok(variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect()),
        Err(wrong) => {
            let lines: Vec<String> = wrong.iter().map(ToString::to_string).collect();
            Err(Failure::new(NO, lines.join("\ncallsign: ")))
        }
    }
}

/// Replaces a file atomically. Symbolic links are followed, but not those that another user has planted; pipes and devices are written directly; `-` is standard
/// output.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    if path.as_os_str() == "-" {
        return print(text);
    }
    let failed = |error: std::io::Error| Failure::new(UNAVAILABLE, format!("cannot write {}: {error}", path.display()));
    let link = std::fs::symlink_metadata(path).ok().filter(std::fs::Metadata::is_symlink);
    if link.is_some_and(|link| ![0, rustix::process::geteuid().as_raw()].contains(&link.uid())) {
        return Err(failed(std::io::Error::other("it is a link that another user has made")));
    }
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let existing = std::fs::metadata(&path).ok();
    if existing.as_ref().is_some_and(std::fs::Metadata::is_dir) {
        return Err(Failure::new(USAGE, format!("cannot write {}: it is a folder; name a file in it", path.display())));
    }
    if existing.as_ref().is_some_and(|existing| !existing.is_file()) {
        let mut open = std::fs::File::options().write(true).open(&path).map_err(failed)?;
        return open.write_all(text.as_bytes()).map_err(failed);
    }
    atomic_file::replace(&path, Readers::Everyone, |file| file.write_all(text.as_bytes())).map_err(failed)
}

/// Rewrites the file whenever the variables change. If a link breaks, the file is left unchanged and a warning logged.
fn watch(args: &EnvArgs) -> Result<(), Failure> {
    let Some(path) = &args.out else { return Ok(()) };
    let live = source::follow(&args.source, &args.names)?;
    let namespace = live.selected_namespace(&args.names);
    let mut last: Option<Result<String, String>> = None;
    loop {
        let found = variables(args, &live.catalog()?, namespace.as_deref()).map_err(|failure| failure.line);
        if last.as_ref() != Some(&found) {
            match &found {
                Ok(text) => {
                    write(path, text)?;
                    print(&format!("{}: {} variables\n", path.display(), text.lines().count()))?;
                }
                Err(error) => warn(format!("leaving {} unchanged: {error}", path.display())),
            }
            last = Some(found);
        }
        live.wait();
    }
}
