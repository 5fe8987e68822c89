//! `callsign explain NAME`: explains how a name resolves, or why it does not.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use clap::Args;
use hickory_proto::rr::RecordType;

use super::source::{self, Cluster};
use super::{Failure, Output, print};
use crate::config::{NameArgs, SourceArgs};
use crate::exit::{NO, UNAVAILABLE, USAGE};
use crate::report::explain::{self, Audience, CallerSpec, Explanation, FORWARDED, FromServer, Pasted};
use crate::wire::Name;

pub(super) const EXAMPLES: &str = "\
Examples:
  callsign explain api --manifests deploy/demo --from web
  callsign explain http://api.web:3000/users --manifests deploy/demo
  callsign explain 10.96.10.20 --manifests deploy/demo
  callsign explain scheduler.backoffice-workers --manifests deploy/demo --server 127.0.0.1:5300
  kubectl get svc,endpointslices,pods,ns -A -o yaml | callsign explain api --manifests - --from web";

/// Flags of `callsign explain`.
#[derive(Args, Clone, Debug)]
pub(super) struct ExplainArgs {
    /// Explain this name, URL (http://api:3000/x), NAME:PORT or address, written as in an application
    name: String,
    /// Resolve it for this caller: a namespace, a pod (POD or NAMESPACE/POD) or an address
    #[arg(long, value_name = "NS|POD|IP")]
    from: Option<String>,
    /// Look up this record type [default: A, and PTR for an address]
    #[arg(long = "type", short = 't', value_name = "TYPE")]
    qtype: Option<String>,
    /// Also query this running server, and report differences
    #[arg(long, value_name = "ADDR[:PORT]")]
    server: Option<String>,
    /// Print in this format
    #[arg(long, short = 'o', value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    names: NameArgs,
}

/// Prints the explanation; fails if the name does not resolve or the server differs.
pub(super) fn run(args: &ExplainArgs) -> Result<(), Failure> {
    let usage = |error: explain::ExplainError| Failure::new(USAGE, error);
    let pasted = Pasted::parse(&args.name);
    if pasted.name.is_empty() && args.name.trim() != "." {
        return Err(Failure::new(
            USAGE,
            format!("'{}' has no name in it; write a name, a URL or an address", args.name),
        ));
    }
    let name = explain::name_of(&pasted.name).map_err(usage)?;
    let default = if pasted.is_address { "PTR" } else { "A" };
    let qtype = explain::type_of(args.qtype.as_deref().unwrap_or(default)).map_err(usage)?;
    let cluster = source::read(&args.source, &args.names)?;
    // Like kubectl, default to the namespace of the kubeconfig's context.
    let context = cluster.selected_namespace(&args.names).filter(|_| args.names.namespace().is_none());
    let from = args.from.as_deref().or(context.as_deref().filter(|name| cluster.catalog.has_namespace(name)));
    let caller = caller(&cluster, from)?;
    let mut explanation =
        explain::explain(&cluster.catalog.zone, &caller, &name, qtype, Audience::Operator).map_err(usage)?;
    let reason = |namespace: &str, pod: &str| cluster.reason(namespace, pod);
    cluster.catalog.complete(&mut explanation, &name, caller.namespace.as_ref(), pasted.port, reason);
    if explanation.rcode != "NOERROR" {
        explanation.near.extend(cluster.catalog.near_parts(&name, caller.namespace.as_ref()));
        explanation.near.dedup();
    }
    if let Some(server) = &args.server {
        explanation.server = Some(query_server(server, &name, qtype, &explanation)?);
    }
    let text = match args.output {
        Output::Text => explanation.text(),
        Output::Json => super::json(&explanation)?,
    };
    print(&text)?;
    let resolves = match explanation.rcode.as_str() {
        "NOERROR" => !explanation.fails,
        // A name that is nearly one of the cluster is more likely a mistake than a name of the internet.
        FORWARDED => explanation.near.is_empty(),
        _ => false,
    };
    match resolves {
        true if explanation.server.as_ref().is_none_or(|server| !server.differs) => Ok(()),
        _ => Err(Failure::silent(NO)),
    }
}

/// Returns the caller that `--from` names: as the zone knows it, else as a pod that the source knows.
fn caller(cluster: &Cluster, from: Option<&str>) -> Result<CallerSpec, Failure> {
    let zone = &cluster.catalog.zone;
    let known = CallerSpec::parse(zone, from);
    let (Some(text), Ok(CallerSpec { namespace: None, .. }) | Err(_)) = (from, &known) else {
        return known.map_err(|error| Failure::new(NO, error));
    };
    match cluster.pod_namespace(text).and_then(|name| zone.settings.namespace_name(&name).ok()) {
        Some(namespace) => Ok(CallerSpec::new(Some(namespace), format!("pod {text}"))),
        None => known.map_err(|_| Failure::new(NO, format!("--from {text}: no namespace or pod has this name"))),
    }
}

/// Queries a running server. The server sees the address of this machine, not the caller of `--from`.
fn query_server(server: &str, name: &Name, qtype: RecordType, explained: &Explanation) -> Result<FromServer, Failure> {
    let address = server.parse::<SocketAddr>().or_else(|_| server.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)));
    let address = address
        .map_err(|_| Failure::new(USAGE, format!("--server '{server}' is not an address; use ADDR or ADDR:PORT")))?;
    let query = explain::query(name, qtype).map_err(|error| Failure::new(USAGE, error))?;
    let over_udp = || -> std::io::Result<Vec<u8>> {
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut reply = vec![0; 65_535];
        let mut failed = std::io::Error::from(std::io::ErrorKind::TimedOut);
        for _ in 0..2 {
            socket.send(&query)?;
            match socket.recv(&mut reply) {
                Ok(length) => {
                    reply.truncate(length);
                    return Ok(reply);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => failed = error,
            }
        }
        Err(failed)
    };
    // A truncated reply is fetched again over TCP (RFC 7766 section 5).
    let over_tcp = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(&[&(query.len() as u16).to_be_bytes()[..], &query].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut reply)?;
        Ok(reply)
    };
    let exchange = || match over_udp()? {
        cut if cut.get(2).is_some_and(|flags| flags & 0x02 != 0) => over_tcp(),
        whole => Ok(whole),
    };
    let reply =
        exchange().map_err(|error| Failure::new(UNAVAILABLE, format!("no reply from --server {address}: {error}")))?;
    let (rcode, answers, is_own) = explain::read(&reply).map_err(|error| Failure::new(UNAVAILABLE, error))?;
    // Ignore TTLs and the order of records: rotation and caching change them.
    let records = |answers: &[String]| -> BTreeSet<String> {
        answers
            .iter()
            .map(|line| {
                line.splitn(3, ' ')
                    .enumerate()
                    .filter(|(at, _)| *at != 1)
                    .map(|(_, part)| part)
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect()
    };
    let (own, theirs) = (records(&explained.answers), records(&answers));
    // Records from upstreams cannot be predicted, but they are not authoritative.
    let differs = match () {
        () if explained.rcode == FORWARDED => is_own,
        () if explained.leads_out => !own.is_subset(&theirs),
        () => rcode != explained.rcode || own != theirs,
    };
    Ok(FromServer { address: address.to_string(), rcode, answers, differs })
}
