//! Colours, on a terminal that wants them.

const BOLD: &str = "\x1b[1m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

/// Whether standard output is a terminal that wants colours.
pub(super) fn is_wanted() -> bool {
    suits(&std::io::stdout())
}

/// Whether this is a terminal, and nobody said NO_COLOR (no-color.org).
pub(super) fn suits(stream: &impl std::io::IsTerminal) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    stream.is_terminal() && !refused && !dumb
}

/// A table with its first line in bold.
pub(super) fn heading(table: &str, wanted: bool) -> String {
    match table.split_once('\n').filter(|_| wanted) {
        Some((heading, rest)) => format!("{BOLD}{heading}{PLAIN}\n{rest}"),
        None => table.to_owned(),
    }
}

/// A line that is new, or not what it was.
pub(super) fn changed(line: &str) -> String {
    format!("{GREEN}{line}{PLAIN}")
}

/// A word that says how bad something is.
pub(super) fn severity(word: &str, bad: bool, wanted: bool) -> String {
    match (wanted, bad) {
        (false, _) => word.to_owned(),
        (true, true) => format!("{BOLD}{RED}{word}{PLAIN}"),
        (true, false) => format!("{YELLOW}{word}{PLAIN}"),
    }
}
