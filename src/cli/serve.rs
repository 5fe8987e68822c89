//! `callsign serve`: runs the DNS server.

use std::io::Write as _;

use serde_json::Value;
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::Failure;
use crate::app;
use crate::cluster::source::Source;
use crate::config::{LogFormat, ServeArgs};
use crate::exit::{CONFIG, UNAVAILABLE};
use crate::sandbox;

pub const EXAMPLES: &str = "\
Examples:
  callsign serve --manifests deploy/demo --listen 127.0.0.1:5300
  callsign serve --kubeconfig ~/.kube/config --listen 127.0.0.1:5300
  callsign serve                                  in a pod: the service account's cluster, port 53";

/// Runs the server until a signal stops it.
pub fn run(args: &ServeArgs) -> Result<(), Failure> {
    let format = args.log_format;
    log(format, args.log_level.as_deref())?;
    let config = args.config().map_err(|error| Failure::new(CONFIG, error))?;
    let source = match &config.source.source {
        Source::Manifests(path) => format!("manifests {}", path.display()),
        Source::Kubeconfig(file, _) => format!("kubeconfig {}", file.display()),
        Source::InCluster => "service account".to_owned(),
        Source::Unspecified => "nothing".to_owned(),
    };
    let lame_duck = config.lame_duck;
    raise_descriptor_limit();
    sandbox::drop_privileges(config.listen.encrypted.is_some());
    // A kubeconfig can name a program that fetches credentials, and that program needs files of its own.
    if !matches!(config.source.source, Source::Kubeconfig(..)) {
        match sandbox::confine(&config.files()) {
            Ok(is_enforced) => tracing::debug!(is_enforced, "file access limited to configured paths"),
            Err(error) => tracing::warn!(%error, "cannot limit file access"),
        }
    }
    let running = app::start(config)?;
    // Whoever reads the line below may send a signal at once.
    let signals = running.signals().map_err(|error| Failure::new(UNAVAILABLE, error))?;
    let plain: Vec<String> = running.addresses.iter().map(ToString::to_string).collect();
    let mut listens: Vec<String> = running.encrypted.iter().map(ToString::to_string).collect();
    if !plain.is_empty() {
        listens.insert(0, format!("{} (udp, tcp)", plain.join(" ")));
    }
    let (version, listens) = (env!("CARGO_PKG_VERSION"), listens.join(", "));
    let (admin, health) = (running.admin, running.health);
    match format {
        // Scripts read the ports from this line. A closed standard output must not stop the server.
        LogFormat::Text => {
            let _ = writeln!(
                std::io::stdout(),
                "callsign {version} listens on {listens}, admin on {admin}, health on {health}, from {source}"
            );
        }
        LogFormat::Json => tracing::info!(version, listens, %admin, %health, source, "callsign listens"),
    }
    running.until_signalled(signals, lame_duck);
    Ok(())
}

/// Raises the limit of open files to the maximum: connections and forwarded queries have limits of their own. The soft
/// limit is low only for the sake of programs that use `select`; this one does not.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // On failure the soft limit stays in force.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// What a server logs by default. Libraries repeat what Callsign says itself.
const DEFAULT_LEVEL: &str = "info,kube_client=off,hickory_net=error";

/// Sets up the log of a command, which has no timestamps: warnings in words, for a person.
pub(super) fn log_of_command(default: &str) {
    let given = std::env::var("CALLSIGN_LOG").unwrap_or_default();
    let levels = levels(default, &given).or_else(|_| levels(default, "")).unwrap_or_default();
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).without_time().with_target(false);
    let logs = logs.with_ansi(super::paint::supports_colours(&std::io::stderr()));
    let _ = tracing_subscriber::registry().with(logs).with(levels).try_init();
}

/// The level of each target: what is given is added to the default.
fn levels(default: &str, given: &str) -> Result<Targets, ParseError> {
    let words = default.split(',').chain(given.split(','));
    words.map(str::trim).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(",").parse()
}

/// Sets up logging to stderr: `--log-level` adds to the default.
fn log(format: LogFormat, given: Option<&str>) -> Result<(), Failure> {
    let given = given.unwrap_or_default();
    let bad = |error: &dyn std::fmt::Display| {
        let words = "write error, warn, info, debug, trace, or TARGET=LEVEL such as callsign::cluster=debug";
        Failure::new(CONFIG, format!("--log-level '{given}': {error}; {words}"))
    };
    // A word alone would be taken for a target.
    let known = ["off", "error", "warn", "info", "debug", "trace"];
    let words = given.split(',').map(str::trim).filter(|word| !word.is_empty());
    for word in words {
        let is_target = word.contains(['=', ':']) && !word.contains('[');
        if !is_target && !known.contains(&word.to_ascii_lowercase().as_str()) {
            return Err(bad(&format!("'{word}' is not a level")));
        }
    }
    let logs = tracing_subscriber::registry().with(levels(DEFAULT_LEVEL, given).map_err(|error| bad(&error))?);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let layer = layer.with_ansi(super::paint::supports_colours(&std::io::stderr()));
    // A program that embeds this crate may have set up logging already.
    let _ = match format {
        LogFormat::Text => logs.with(layer.with_target(false)).try_init(),
        LogFormat::Json => logs.with(layer.json()).try_init(),
    };
    Ok(())
}

/// Returns the flags of a configuration file as arguments, without those set on the command line or in the environment.
pub fn arguments_from_file(path: &str, given: &[String]) -> Result<Vec<String>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let options = serde_saphyr::options! { with_snippet: false };
    let file: Value = serde_saphyr::from_str_with_options(&text, options).map_err(|error| error.to_string())?;
    let Value::Object(flags) = file else { return Err("not a mapping; write one 'flag: value' per line".to_owned()) };
    let command = <super::Cli as clap::CommandFactory>::command();
    let serve = command.find_subcommand("serve").ok_or("the serve command is missing")?;
    let mut arguments = Vec::new();
    for (flag, value) in flags {
        let known = serve.get_arguments().find(|argument| argument.get_long() == Some(flag.as_str()));
        let Some(known) = known else { return Err(format!("unknown flag '{flag}'")) };
        let long = format!("--{flag}");
        let on_line = given.iter().any(|argument| *argument == long || argument.starts_with(&format!("{long}=")));
        let in_environment = known.get_env().is_some_and(|name| std::env::var_os(name).is_some());
        if on_line || in_environment || flag == "config" {
            continue;
        }
        let values = match value {
            Value::Array(values) => values,
            Value::Bool(false) | Value::Null => continue,
            Value::Bool(true) if !known.get_action().takes_values() => {
                arguments.push(long);
                continue;
            }
            one => vec![one],
        };
        for value in values {
            match value {
                Value::String(text) => arguments.push(format!("{long}={text}")),
                Value::Number(number) => arguments.push(format!("{long}={number}")),
                other => {
                    return Err(format!("invalid value for '{flag}': {other}; write text, a number or a list of them"));
                }
            }
        }
    }
    Ok(arguments)
}
