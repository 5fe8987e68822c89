//! Arguments, logs, configuration, run.

use std::process::ExitCode;

use callsign::cli;

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args().collect()) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            // One line: what was wrong. The usage is a --help away.
            let text = error.to_string();
            let line = text
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
                .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
            let line = line.collect::<Vec<_>>().join(" ");
            eprintln!("{line}");
            return ExitCode::from(cli::USAGE);
        }
        Err(help) => {
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.line.is_empty() {
                eprintln!("callsign: {}", failure.line);
            }
            ExitCode::from(failure.status)
        }
    }
}
