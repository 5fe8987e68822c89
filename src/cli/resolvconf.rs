//! `callsign resolvconf`: prints a resolv.conf for a container.

use std::net::IpAddr;

use clap::Args;

use super::{Failure, print};
use crate::config::NameArgs;
use crate::exit::{CONFIG, USAGE};
use crate::wire::label_of;

pub(super) const EXAMPLES: &str = "\
Examples:
  callsign resolvconf --server 10.96.0.53
  callsign resolvconf --server 10.96.0.53 --search -n web";

/// Flags of `callsign resolvconf`.
#[derive(Args, Clone, Debug)]
pub(super) struct ResolvConfArgs {
    /// List Callsign at this address as a nameserver (repeatable)
    #[arg(long = "server", value_name = "IP", required = true)]
    servers: Vec<IpAddr>,
    /// Add the search list that the kubelet writes for pods in -n, for clients that expect one
    #[arg(long)]
    search: bool,
    #[command(flatten)]
    names: NameArgs,
}

/// Prints the file.
pub(super) fn run(args: &ResolvConfArgs) -> Result<(), Failure> {
    let settings = args.names.settings().map_err(|error| Failure::new(CONFIG, error))?;
    let mut text: String = args.servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    if args.search {
        let namespace = args.names.namespace().unwrap_or("default");
        label_of(namespace).map_err(|error| Failure::new(USAGE, format!("-n '{namespace}': {error}")))?;
        let domain = settings.first_domain();
        text += &format!("search {namespace}.svc.{domain} svc.{domain} {domain}\noptions ndots:5\n");
    }
    print(&text)
}
