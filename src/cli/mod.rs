//! The command line: one file per subcommand.

mod dns;
mod doctor;
mod env;
mod explain;
mod name;
mod paint;
mod resolvconf;
mod serve;
mod services;
mod source;

use std::io::Write as _;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::cluster::source::SourceError;
use crate::exit::{self, UNAVAILABLE, USAGE};

/// DNS server for Kubernetes: full names, short names, and an explanation of every answer.
#[derive(Parser, Debug)]
#[command(name = "callsign", version, about, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the DNS server
    #[command(after_help = serve::EXAMPLES)]
    Serve(Box<crate::config::ServeArgs>),
    /// List Services with their names and ports
    #[command(after_help = services::EXAMPLES)]
    Services(Box<services::ServicesArgs>),
    /// Explain how a name resolves, or why it does not
    #[command(after_help = explain::EXAMPLES)]
    Explain(Box<explain::ExplainArgs>),
    /// List installed apps with their names and ports
    #[command(after_help = dns::EXAMPLES)]
    Dns(Box<dns::DnsArgs>),
    /// Print the full name of an app's Service
    #[command(after_help = name::EXAMPLES)]
    Name(Box<name::AppArgs>),
    /// Generate the environment variables that link a Service to others
    #[command(after_help = env::EXAMPLES)]
    Env(Box<env::EnvArgs>),
    /// Find problems with the names of a cluster
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(Box<doctor::DoctorArgs>),
    /// Print a resolv.conf for a container
    #[command(name = "resolvconf", after_help = resolvconf::EXAMPLES)]
    ResolvConf(Box<resolvconf::ResolvConfArgs>),
    /// Print a shell completion script
    #[command(after_help = COMPLETION)]
    Completion {
        /// Generate the script for this shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Print the manual page of callsign or of one of its commands
    #[command(after_help = MAN)]
    Man {
        /// Print the page of this command
        command: Option<String>,
    },
}

const COMPLETION: &str = "\
Examples:
  callsign completion bash > /usr/share/bash-completion/completions/callsign
  callsign completion zsh > \"${fpath[1]}/_callsign\"
  callsign completion fish > ~/.config/fish/completions/callsign.fish";

const MAN: &str = "\
Examples:
  callsign man > /usr/local/share/man/man1/callsign.1
  callsign man explain | man -l -";

/// A shell with a completion script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Shell {
    /// GNU bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// Values of `-o` for commands that print text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// Human-readable text
    #[default]
    Text,
    /// JSON
    Json,
}

/// A failed command: its error message and exit status.
#[derive(Debug)]
pub struct Failure {
    /// The exit status.
    pub status: u8,
    /// One line; empty if the output already explains the status.
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

/// Warns in one plain line on standard error.
fn warn(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "callsign: warning: {line}");
}

/// Writes to standard output. A closed pipe is not an error; any other failure, such as a full disk, is.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(UNAVAILABLE, format!("cannot write the output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Returns a value as indented JSON with a final newline.
fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value);
    Ok(text.map_err(|error| Failure::new(UNAVAILABLE, format!("cannot format the output: {error}")))? + "\n")
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Failure {
        let status = if error.is_misconfigured() { exit::CONFIG } else { UNAVAILABLE };
        Failure::new(status, error)
    }
}

impl From<crate::app::StartError> for Failure {
    fn from(error: crate::app::StartError) -> Failure {
        Failure::new(error.exit_status(), error)
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
        // The command reports failures of its source in its own error line.
        serve::log_of_command("warn,kube_client=off,callsign::cluster::publish=off");
        match self.command {
            Command::Serve(_) => Ok(()),
            Command::Explain(args) => explain::run(&args),
            Command::Dns(args) => dns::run(&args),
            Command::Name(args) => name::run(&args),
            Command::Services(args) => services::run(&args),
            Command::Env(args) => env::run(&args),
            Command::Doctor(args) => doctor::run(&args),
            Command::ResolvConf(args) => resolvconf::run(&args),
            Command::Completion { shell } => completion(shell),
            Command::Man { command } => man(command.as_deref()),
        }
    }
}

fn completion(shell: Shell) -> Result<(), Failure> {
    use clap_complete::{Shell as For, generate};
    let mut script = Vec::new();
    let shell = match shell {
        Shell::Bash => For::Bash,
        Shell::Zsh => For::Zsh,
        Shell::Fish => For::Fish,
    };
    generate(shell, &mut Cli::command(), "callsign", &mut script);
    print(&String::from_utf8_lossy(&script))
}

fn man(command: Option<&str>) -> Result<(), Failure> {
    let mut all = Cli::command();
    all.build();
    let page = match command {
        None => all,
        Some(name) => {
            let found = all.find_subcommand(name).cloned();
            let page =
                found.ok_or_else(|| Failure::new(USAGE, format!("no command '{name}'; see `callsign --help`")))?;
            // Named as in git: git-commit(1).
            page.name(format!("callsign-{name}"))
        }
    };
    let mut roff = Vec::new();
    let made = clap_mangen::Man::new(page).render(&mut roff);
    made.map_err(|error| Failure::new(UNAVAILABLE, format!("cannot render the manual page: {error}")))?;
    print(&String::from_utf8_lossy(&roff))
}

/// Moves the cursor to the top left and clears the screen below it (ECMA-48 sections 8.3.21 and 8.3.39).
const CLEAR: &str = "\x1b[H\x1b[J";

/// Aligns rows in columns two spaces apart; the last column is not padded.
fn table(rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut columns = tabwriter::TabWriter::new(Vec::new()).minwidth(0).padding(2);
    for row in rows {
        // Writing to memory cannot fail.
        let _ = writeln!(columns, "{}", row.join("\t"));
    }
    String::from_utf8_lossy(&columns.into_inner().unwrap_or_default()).into_owned()
}

/// Adds kubectl's kubeconfig, `KUBECONFIG` or `~/.kube/config`, if the program runs as `kubectl callsign`.
fn as_plugin(mut arguments: Vec<String>) -> Vec<String> {
    let program = arguments.first().map(std::path::Path::new).and_then(|path| path.file_name());
    let is_plugin = program.is_some_and(|name| name == "kubectl-callsign" || name == "kubectl_callsign");
    let given =
        |flag: &str| arguments.iter().any(|argument| argument == flag || argument.starts_with(&format!("{flag}=")));
    let asks = ["services", "dns", "explain", "env", "name", "doctor"];
    let asks = arguments.get(1).is_some_and(|command| asks.contains(&command.as_str()));
    let configured = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let elsewhere = configured("CALLSIGN_MANIFESTS") || configured("CALLSIGN_KUBECONFIG");
    if !is_plugin
        || !asks
        || elsewhere
        || given("--kubeconfig")
        || given("--manifests")
        || given("--help")
        || given("-h")
    {
        return arguments;
    }
    let home = || Some(std::path::PathBuf::from(std::env::var_os("HOME")?).join(".kube/config"));
    let configured =
        std::env::var_os("KUBECONFIG").filter(|configured| !configured.is_empty()).map(std::path::PathBuf::from);
    if let Some(path) = configured.or_else(|| home().filter(|path| path.exists())) {
        arguments.insert(2, format!("--kubeconfig={}", path.display()));
    }
    arguments
}

/// Returns the message of a usage error: clap's lines without the usage, the best suggestion first.
pub fn message_of(mut error: clap::Error) -> String {
    use clap::error::{ContextKind, ContextValue};
    let text = |kind: ContextKind, error: &clap::Error| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    for (written, suggested) in [
        (ContextKind::InvalidArg, ContextKind::SuggestedArg),
        (ContextKind::InvalidSubcommand, ContextKind::SuggestedSubcommand),
        (ContextKind::InvalidValue, ContextKind::SuggestedValue),
    ] {
        let Some(wrong) = text(written, &error) else { continue };
        if let Some(ContextValue::Strings(mut all)) = error.get(suggested).cloned() {
            all.sort_by_key(|other| strsim::damerau_levenshtein(&wrong, other));
            all.truncate(1);
            let best = all.pop().map_or(ContextValue::None, ContextValue::String);
            error.insert(suggested, best);
        }
    }
    let text = error.to_string();
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let lines = lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    lines.collect::<Vec<_>>().join("\n").replacen("error: ", "callsign: ", 1)
}

/// Parses the arguments, together with the flags of `--config FILE` that neither command line nor environment set.
///
/// # Errors
/// The arguments or the file are not valid; help and version requests are errors to clap as well.
pub fn parse(arguments: Vec<String>) -> Result<Cli, clap::Error> {
    let arguments = as_plugin(arguments);
    let file = arguments.iter().enumerate().find_map(|(at, argument)| match argument.as_str() {
        "--config" => arguments.get(at + 1).cloned(),
        other => other.strip_prefix("--config=").map(str::to_owned),
    });
    let file = file.or_else(|| {
        std::env::var("CALLSIGN_CONFIG").ok().filter(|_| arguments.get(1).is_some_and(|command| command == "serve"))
    });
    let Some(file) = file else { return Cli::try_parse_from(arguments) };
    let more = serve::arguments_from_file(&file, &arguments).map_err(|error| {
        clap::Error::raw(clap::error::ErrorKind::InvalidValue, format!("--config {file}: {error}\n"))
    })?;
    Cli::try_parse_from(arguments.into_iter().chain(more))
}
