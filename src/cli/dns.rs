//! `callsign dns [APP…]`: lists the names and ports of installed apps, for linking one to another.

use std::collections::BTreeMap;

use clap::Args;

use super::{Failure, print, source};
use crate::config::{NameArgs, SourceArgs};
use crate::exit::NO;
use crate::report::services;

pub(super) const EXAMPLES: &str = "\
Examples:
  callsign dns --kubeconfig ~/.kube/config
  callsign dns traefik sabnzbd --manifests deploy/demo";

/// Flags of `callsign dns`.
#[derive(Args, Clone, Debug)]
pub(super) struct DnsArgs {
    /// List only these apps, given with or without their namespace prefix
    #[arg(value_name = "APP")]
    apps: Vec<String>,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    names: NameArgs,
}

/// Prints one group of Services per application namespace.
pub(super) fn run(args: &DnsArgs) -> Result<(), Failure> {
    let cluster = source::read(&args.source, &args.names)?;
    let prefix = &*args.names.application_prefix;
    // App -> Service -> full name and ports, sorted by app and Service.
    let mut apps: BTreeMap<&str, BTreeMap<&str, (&str, String)>> = BTreeMap::new();
    let lines = services::list(&cluster.catalog, None);
    for line in &lines {
        let Some(app) = line.namespace.strip_prefix(prefix).filter(|app| !app.is_empty()) else { continue };
        let ports: Vec<String> = line.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)).collect();
        apps.entry(app).or_default().insert(&line.service, (&line.domain, ports.join(",")));
    }
    let wanted: Vec<&str> =
        args.apps.iter().map(|app| app.strip_prefix(prefix).filter(|app| !app.is_empty()).unwrap_or(app)).collect();
    let unknown: Vec<&str> = wanted.iter().filter(|app| !apps.contains_key(**app)).copied().collect();
    apps.retain(|app, _| wanted.is_empty() || wanted.contains(app));
    let width = apps.values().flat_map(BTreeMap::values).map(|(name, _)| name.len()).max().unwrap_or_default();
    let groups: Vec<String> = apps
        .iter()
        .map(|(app, services)| {
            let lines =
                services.values().map(|(name, ports)| format!("{name:width$}  {ports}").trim_end().to_owned() + "\n");
            format!("{prefix}{app}\n{}", lines.collect::<String>())
        })
        .collect();
    print(&groups.join("\n"))?;
    match unknown.as_slice() {
        [] if groups.is_empty() => {
            let error =
                format!("no namespace with the prefix '{prefix}' has Services; set another with --application-prefix");
            Err(Failure::new(NO, error))
        }
        [] => Ok(()),
        _ => Err(Failure::new(NO, format!("no such app: {}; `callsign dns` lists all apps", unknown.join(", ")))),
    }
}
