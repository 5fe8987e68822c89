//! Subcommands, a file each.

mod dns;
mod explain;
mod name;
mod serve;
mod source;

use std::io::Write as _;

use clap::{Parser, Subcommand};

/// Exit status for bad usage (sysexits.h).
pub const USAGE: u8 = 64;
/// Exit status for bad configuration.
pub const CONFIG: u8 = 78;
/// Exit status for a source or server that cannot be reached.
pub const UNAVAILABLE: u8 = 69;
/// Exit status when the answer is "no".
pub const NO: u8 = 1;

/// In-cluster DNS for Kubernetes: short names, full names, and the reason why.
#[derive(Parser, Debug)]
#[command(name = "callsign", version, about, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Answer DNS
    #[command(after_help = serve::EXAMPLES)]
    Serve(Box<crate::config::ServeArgs>),
    /// Say how a name resolves, or why it does not
    #[command(after_help = explain::EXAMPLES)]
    Explain(Box<explain::ExplainArgs>),
    /// List the names of installed apps and their ports
    #[command(after_help = dns::EXAMPLES)]
    Dns(Box<dns::DnsArgs>),
    /// Say what an app's Service is called
    #[command(after_help = name::EXAMPLES)]
    Name(Box<name::AppArgs>),
}

/// What went wrong, as one line, and the exit status that says so.
#[derive(Debug)]
pub struct Failure {
    /// Status.
    pub status: u8,
    /// One line; empty where the output has said it all.
    pub line: String,
}

impl Failure {
    fn new(status: u8, line: impl std::fmt::Display) -> Failure {
        Failure { status, line: line.to_string() }
    }

    fn silent(status: u8) -> Failure {
        Failure { status, line: String::new() }
    }
}

/// Prints what a command has to say. A reader that has seen enough is no error; a full disk is one.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(why) if why.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(UNAVAILABLE, format!("the output cannot be written: {why}")))
        }
        _ => Ok(()),
    }
}

impl From<crate::app::StartError> for Failure {
    fn from(why: crate::app::StartError) -> Failure {
        Failure::new(why.exit_status(), why)
    }
}

impl Cli {
    /// Runs the command.
    ///
    /// # Errors
    /// One line and an exit status.
    pub fn run(self) -> Result<(), Failure> {
        if let Command::Serve(args) = &self.command {
            return serve::run(args);
        }
        serve::log(crate::config::LogFormat::Text, "warn");
        match self.command {
            Command::Serve(_) => Ok(()),
            Command::Explain(args) => explain::run(&args),
            Command::Dns(args) => dns::run(&args),
            Command::Name(args) => name::run(&args),
        }
    }
}

/// The arguments of the process, with those of `--config FILE` where the command line and the environment are silent.
///
/// # Errors
/// Bad usage: what clap says, and its first line.
pub fn parse(arguments: Vec<String>) -> Result<Cli, clap::Error> {
    let file = arguments.iter().enumerate().find_map(|(at, argument)| match argument.as_str() {
        "--config" => arguments.get(at + 1).cloned(),
        other => other.strip_prefix("--config=").map(str::to_owned),
    });
    let file = file.or_else(|| {
        std::env::var("CALLSIGN_CONFIG").ok().filter(|_| arguments.get(1).is_some_and(|command| command == "serve"))
    });
    let Some(file) = file else { return Cli::try_parse_from(arguments) };
    let more = serve::arguments_of(&file, &arguments)
        .map_err(|why| clap::Error::raw(clap::error::ErrorKind::InvalidValue, format!("--config {file}: {why}\n")))?;
    Cli::try_parse_from(arguments.into_iter().chain(more))
}
