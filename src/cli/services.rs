//! `callsign services`: lists Services with their names and ports.

use std::collections::BTreeSet;
use std::io::IsTerminal as _;
use std::io::Write as _;

use clap::{Args, ValueEnum};

use super::{CLEAR, Failure, json, paint, print, source, table, warn};
use crate::config::{NameArgs, SourceArgs};
use crate::exit::{NO, UNAVAILABLE};
use crate::report::Catalog;
use crate::report::services::{self, ServiceEntry};

pub(super) const EXAMPLES: &str = "\
Examples:
  callsign services -n web --manifests deploy/demo
  callsign services -A -o wide --kubeconfig ~/.kube/config
  callsign services -A -o json --manifests deploy/demo | jq -r '.[].domain'
  callsign services -A --watch --kubeconfig ~/.kube/config";

/// Values of `-o` for `callsign services`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum ListOutput {
    /// Name, full name and ports
    #[default]
    Table,
    /// Also short name, type, ready endpoints and aliases
    Wide,
    /// All fields, as JSON
    Json,
    /// All fields, as YAML
    Yaml,
    /// The columns of wide, for spreadsheets
    Csv,
}

/// Flags of `callsign services`.
#[derive(Args, Clone, Debug)]
pub(super) struct ServicesArgs {
    /// List only these Services
    #[arg(value_name = "NAME")]
    services: Vec<String>,
    /// List the Services of all namespaces, not only of one
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Print in this format
    #[arg(long, short = 'o', value_enum, default_value_t = ListOutput::Table)]
    output: ListOutput,
    /// Keep running, and show changes
    #[arg(long, short = 'w')]
    watch: bool,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    names: NameArgs,
}

/// Lists Services, once or continuously.
pub(super) fn run(args: &ServicesArgs) -> Result<(), Failure> {
    if args.watch {
        return watch(args);
    }
    let cluster = source::read(&args.source, &args.names)?;
    let namespace = cluster.selected_namespace(&args.names).unwrap_or_else(|| "default".to_owned());
    let (lines, unknown) = selected(args, &cluster.catalog, &namespace)?;
    print(&render(args, &lines, paint::is_enabled())?)?;
    match unknown.as_slice() {
        [] => Ok(()),
        _ => {
            let hint = if args.all_namespaces { "" } else { "; use -A to search all namespaces" };
            Err(Failure::new(NO, format!("no such Service: {}{hint}", unknown.join(", "))))
        }
    }
}

/// Returns the selected Services, and the given names that match none.
fn selected(
    args: &ServicesArgs,
    catalog: &Catalog,
    namespace: &str,
) -> Result<(Vec<ServiceEntry>, Vec<String>), Failure> {
    let mut lines = services::list(catalog, Some(namespace).filter(|_| !args.all_namespaces));
    if lines.is_empty() && !args.all_namespaces {
        let others: Vec<&str> = catalog.namespaces().take(8).collect();
        let what = if catalog.has_namespace(namespace) { "no Services in" } else { "no" };
        let hint = match others.as_slice() {
            [] => "the source has no namespaces".to_owned(),
            _ => format!("choose another with -n ({}), or list all with -A", others.join(", ")),
        };
        return Err(Failure::new(NO, format!("{what} namespace {namespace}; {hint}")));
    }
    let known: BTreeSet<&str> = lines.iter().map(|line| line.service.as_str()).collect();
    let unknown = args.services.iter().filter(|name| !known.contains(name.as_str())).cloned().collect();
    if !args.services.is_empty() {
        lines.retain(|line| args.services.contains(&line.service));
    }
    Ok((lines, unknown))
}

fn render(args: &ServicesArgs, lines: &[ServiceEntry], colours: bool) -> Result<String, Failure> {
    let failed =
        |error: &dyn std::fmt::Display| Failure::new(UNAVAILABLE, format!("cannot format the output: {error}"));
    match args.output {
        ListOutput::Json => json(&lines),
        ListOutput::Yaml => serde_saphyr::to_string(&lines).map_err(|error| failed(&error)),
        ListOutput::Table | ListOutput::Wide => {
            let rows: Vec<_> =
                std::iter::once(heading(args)).chain(lines.iter().map(|line| cells(args, line))).collect();
            Ok(paint::heading(&table(fitted(rows).into_iter()), colours))
        }
        ListOutput::Csv => {
            comma_separated(std::iter::once(heading(args)).chain(lines.iter().map(|line| cells(args, line))))
        }
    }
}

fn comma_separated(rows: impl Iterator<Item = Vec<String>>) -> Result<String, Failure> {
    let failed =
        |error: &dyn std::fmt::Display| Failure::new(UNAVAILABLE, format!("cannot format the output: {error}"));
    let mut out = csv::WriterBuilder::new().from_writer(Vec::new());
    for row in rows {
        let plain = row.iter().map(|cell| if cell == NONE { "" } else { cell.as_str() });
        out.write_record(plain).map_err(|error| failed(&error))?;
    }
    let octets = out.into_inner().map_err(|error| failed(&error))?;
    String::from_utf8(octets).map_err(|error| failed(&error))
}

/// Shortens the widest cells of a table in the middle, until its rows fit the terminal. In a pipe, nothing is lost.
fn fitted(mut rows: Vec<Vec<String>>) -> Vec<Vec<String>> {
    let Some(terminal) = terminal_width() else { return rows };
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |cell: Option<&String>| cell.map_or(0, |cell| cell.chars().count());
    let mut widths: Vec<usize> =
        (0..columns).map(|column| rows.iter().map(|row| width(row.get(column))).max().unwrap_or(0)).collect();
    while widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1) > terminal {
        match widths.iter_mut().max() {
            Some(widest) if *widest > MIN_WIDTH => *widest -= 1,
            _ => break,
        }
    }
    for (cell, width) in rows.iter_mut().flat_map(|row| row.iter_mut().zip(&widths)) {
        let count = cell.chars().count();
        if count > *width {
            let (start, end) = (width / 2, (width - 1) / 2);
            let characters: Vec<char> = cell.chars().collect();
            let (start, end) = (&characters[..start], &characters[count - end..]);
            *cell = start.iter().chain(&['…']).chain(end).collect();
        }
    }
    rows
}

/// Returns the number of columns of the terminal; `None` if standard output is not one.
fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Columns are not made narrower than this.
const MIN_WIDTH: usize = 8;

/// Placeholder for an empty table cell.
const NONE: &str = "-";

fn heading(args: &ServicesArgs) -> Vec<String> {
    let namespace = args.all_namespaces.then_some("NAMESPACE");
    let wide: &[&str] = match args.output {
        ListOutput::Wide | ListOutput::Csv => &["SHORT", "TYPE", "READY", "ALIASES"],
        _ => &[],
    };
    let all = namespace.iter().chain(&["SERVICE", "DOMAIN", "PORTS"]).chain(wide);
    all.map(|cell| (*cell).to_owned()).collect()
}

fn cells(args: &ServicesArgs, line: &ServiceEntry) -> Vec<String> {
    let mut cells = Vec::new();
    if args.all_namespaces {
        cells.push(line.namespace.clone());
    }
    cells.extend([line.service.clone(), line.domain.clone(), line.ports_text()]);
    if matches!(args.output, ListOutput::Wide | ListOutput::Csv) {
        cells.extend([line.short.clone(), line.r#type.to_owned(), line.ready_text(), line.aliases.join(",")]);
    }
    for cell in &mut cells {
        if cell.is_empty() {
            NONE.clone_into(cell);
        }
    }
    cells
}

/// On a terminal, redraws the whole list after each change. In a pipe, prints the list and then one line per change.
/// The first column says what is new, changed or gone.
fn watch(args: &ServicesArgs) -> Result<(), Failure> {
    let live = source::follow(&args.source, &args.names)?;
    let namespace = live.selected_namespace(&args.names).unwrap_or_else(|| "default".to_owned());
    let terminal = std::io::stdout().is_terminal();
    let mut shown: Option<Vec<ServiceEntry>> = None;
    loop {
        let catalog = live.catalog()?;
        let lines = match selected(args, &catalog, &namespace) {
            Ok((lines, _)) => lines,
            // The namespace or its Services may appear later.
            Err(error) if shown.is_none() && !terminal => {
                warn(format!("nothing to list yet, waiting: {}", error.line));
                Vec::new()
            }
            Err(_) => Vec::new(),
        };
        if shown.as_ref() != Some(&lines) {
            let text = match (&shown, terminal) {
                (_, true) => screen(args, shown.as_deref().unwrap_or(&lines), &lines)?,
                (None, false) if is_marked(args) => changes(args, &[], &lines)?,
                (None, false) => render(args, &lines, false)?,
                (Some(before), false) => changes(args, before, &lines)?,
            };
            let mut out = std::io::stdout().lock();
            match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(Failure::new(UNAVAILABLE, format!("cannot write the output: {error}"))),
            }
            drop(out);
            shown = Some(lines);
        }
        live.wait();
    }
}

/// Whether the rows of `--watch` say what has changed: programs that read JSON or YAML get whole lists.
fn is_marked(args: &ServicesArgs) -> bool {
    !matches!(args.output, ListOutput::Json | ListOutput::Yaml)
}

/// Returns the rows of `--watch`, whose first cell says whether a Service is new, changed or gone: those of all Services,
/// or only of those.
fn marked(args: &ServicesArgs, before: &[ServiceEntry], now: &[ServiceEntry], all: bool) -> Vec<Vec<String>> {
    let same = |a: &ServiceEntry, b: &ServiceEntry| a.namespace == b.namespace && a.service == b.service;
    let row = |word: &str, rest: Vec<String>| -> Vec<String> { std::iter::once(word.to_owned()).chain(rest).collect() };
    let word = |line: &ServiceEntry| match before.iter().find(|other| same(line, other)) {
        Some(other) if other == line => "",
        Some(_) => "changed",
        None => "new",
    };
    let current = now.iter().map(|line| (word(line), line)).filter(|(word, _)| all || !word.is_empty());
    let gone = before.iter().filter(|line| !now.iter().any(|other| same(line, other))).map(|line| ("gone", line));
    let heading = (all || before.is_empty()).then(|| row("CHANGE", heading(args)));
    heading.into_iter().chain(current.chain(gone).map(|(word, line)| row(word, cells(args, line)))).collect()
}

/// Returns a row for each change, after a heading the first time.
fn changes(args: &ServicesArgs, before: &[ServiceEntry], now: &[ServiceEntry]) -> Result<String, Failure> {
    if !is_marked(args) {
        return render(args, now, false);
    }
    let rows = marked(args, before, now, false).into_iter();
    if args.output == ListOutput::Csv { comma_separated(rows) } else { Ok(table(rows)) }
}

/// Returns the whole list, drawn from the top of the terminal, with changes in colour.
fn screen(args: &ServicesArgs, before: &[ServiceEntry], now: &[ServiceEntry]) -> Result<String, Failure> {
    if !matches!(args.output, ListOutput::Table | ListOutput::Wide) {
        return Ok(format!("{CLEAR}{}", render(args, now, false)?));
    }
    let colours = paint::is_enabled();
    let rows = marked(args, before, now, true);
    let is_changed: Vec<bool> = rows.iter().map(|row| row.first().is_some_and(|word| !word.is_empty())).collect();
    let text = table(fitted(rows).into_iter());
    let lines = text.lines().zip(is_changed).enumerate().map(|(at, (line, is_changed))| match (at, is_changed) {
        (0, _) => paint::heading(&format!("{line}\n"), colours).trim_end().to_owned(),
        (_, true) if colours => paint::changed(line),
        _ => line.to_owned(),
    });
    Ok(format!("{CLEAR}{}\n", lines.collect::<Vec<_>>().join("\n")))
}
