//! `callsign name`: prints the name of an app's Service, by the application rule.

use clap::Args;

use super::{Failure, print, source};
use crate::cluster::source::Source;
use crate::config::{NameArgs, SourceArgs};
use crate::exit::{CONFIG, NO, USAGE};
use crate::wire::label_of;
use crate::zone::full_name;

pub(super) const EXAMPLES: &str = "\
Examples:
  callsign name --app sab --chart sabnzbd
  callsign name --app traefik --chart traefik --service tcp
  callsign name --app sab --chart sabnzbd --manifests deploy/demo";

/// Flags of `callsign name`.
#[derive(Args, Clone, Debug)]
pub(super) struct AppArgs {
    /// Name that the app was installed under
    #[arg(long, value_name = "NAME")]
    app: String,
    /// Chart that the app was installed from
    #[arg(long, value_name = "CHART")]
    chart: String,
    /// Print the name of this service of the app instead of its main one
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    names: NameArgs,
}

/// Prints the full name. With a source, fails if the Service does not exist.
pub(super) fn run(args: &AppArgs) -> Result<(), Failure> {
    let settings = args.names.settings().map_err(|error| Failure::new(CONFIG, error))?;
    let domain = settings.first_domain();
    let namespace = format!("{}{}", args.names.application_prefix, args.app);
    let main = full_name(&args.app, &args.chart);
    // Charts usually prefix a service with the main one's name; the bare service name is the second candidate.
    let services = match &args.service {
        None => vec![main],
        Some(service) => vec![format!("{main}-{service}"), service.clone()],
    };
    for label in services.iter().chain([&namespace, &args.app, &args.chart]) {
        label_of(label).map_err(|error| Failure::new(USAGE, format!("'{label}' is not a valid DNS label: {error}")))?;
    }
    let full = |service: &str| format!("{service}.{namespace}.svc.{domain}\n").to_ascii_lowercase();
    let first = services.first().map(String::as_str).unwrap_or_default();
    if matches!(args.source.source(), Source::Unspecified) {
        return print(&full(first));
    }
    let zone = source::read(&args.source, &args.names)?.catalog.zone;
    let exists = |service: &&String| match (label_of(service), label_of(&namespace)) {
        (Ok(service), Ok(namespace)) => zone.service(zone.label(&service), zone.label(&namespace)).is_some(),
        _ => false,
    };
    let found = services.iter().find(exists);
    match found {
        Some(service) => print(&full(service)),
        None => Err(Failure::new(
            NO,
            format!("no Service {first} in namespace {namespace}; `callsign explain {}` lists similar names", args.app),
        )),
    }
}
