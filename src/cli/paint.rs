//! Colours for terminals that support them.

const BOLD: &str = "\x1b[1m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

/// Returns whether standard output is coloured.
pub(super) fn is_enabled() -> bool {
    supports_colours(&std::io::stdout())
}

/// Returns whether a stream is a colour terminal and `NO_COLOR` is unset (no-color.org).
pub(super) fn supports_colours(stream: &impl std::io::IsTerminal) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    stream.is_terminal() && !refused && !dumb
}

/// Returns a table with its first line in bold.
pub(super) fn heading(table: &str, wanted: bool) -> String {
    match table.split_once('\n').filter(|_| wanted) {
        Some((heading, rest)) => format!("{BOLD}{heading}{PLAIN}\n{rest}"),
        None => table.to_owned(),
    }
}

/// Highlights a new or changed line.
pub(super) fn changed(line: &str) -> String {
    format!("{GREEN}{line}{PLAIN}")
}

/// Colours the severity of a finding.
pub(super) fn severity(word: &str, bad: bool, wanted: bool) -> String {
    match (wanted, bad) {
        (false, _) => word.to_owned(),
        (true, true) => format!("{BOLD}{RED}{word}{PLAIN}"),
        (true, false) => format!("{YELLOW}{word}{PLAIN}"),
    }
}
