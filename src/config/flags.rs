//! Command-line flags: their names, help texts, defaults and bounds.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{caller_block, duration};
use crate::forward::{Stub, Upstream};
use crate::zone::Cidr;

// Headings appear in the help in the order in which their first flag is declared.
const SOURCE: &str = "Sources";
const NAMES: &str = "Names";
const CALLERS: &str = "Callers";

/// Flags that select the source; every command that reads a cluster has them.
#[derive(Args, Clone, Debug, Default)]
pub struct SourceArgs {
    /// Read manifests from a file or folder (watched for changes), or from standard input (-)
    #[arg(long, value_name = "PATH", env = "CALLSIGN_MANIFESTS", conflicts_with = "kubeconfig", help_heading = SOURCE)]
    pub manifests: Option<PathBuf>,
    /// Connect to the cluster in this kubeconfig
    #[arg(long, value_name = "FILE", env = "CALLSIGN_KUBECONFIG", help_heading = SOURCE)]
    pub kubeconfig: Option<PathBuf>,
    /// Use this context of the kubeconfig [default: the current context]
    #[arg(long, value_name = "NAME", requires = "kubeconfig", help_heading = SOURCE)]
    pub context: Option<String>,
    /// Assign addresses from this block to manifest Services without a clusterIP (repeatable, one per address family)
    #[arg(long = "service-cidr", value_name = "CIDR", default_values = ["10.96.0.0/16", "fd00:10:96::/112"], help_heading = SOURCE)]
    pub service_cidrs: Vec<Cidr>,
}

/// Flags that decide how names resolve; `serve` and the commands that inspect a cluster share them.
#[derive(Args, Clone, Debug)]
pub struct NameArgs {
    /// Answer full names under this domain (repeatable; record targets use the first)
    #[arg(
        long = "cluster-domain",
        value_name = "DOMAIN",
        default_value = "cluster.local",
        env = "CALLSIGN_CLUSTER_DOMAIN",
        value_delimiter = ',', help_heading = NAMES
    )]
    pub cluster_domains: Vec<String>,
    /// Use this namespace; `serve` assumes it for callers that no other rule identifies, as in a sidecar
    #[arg(long, short = 'n', value_name = "NS", env = "CALLSIGN_NAMESPACE", help_heading = CALLERS)]
    pub namespace: Option<String>,
    /// Map client addresses in this network to a namespace (repeatable; the longest prefix wins)
    #[arg(long, value_name = "CIDR=NS", value_parser = caller_block, help_heading = CALLERS)]
    pub callers: Vec<(Cidr, String)>,
    /// Select which addresses have names of the form a-b-c-d.NAMESPACE.pod
    #[arg(long, value_enum, default_value_t = PodNamesArg::Off, help_heading = NAMES)]
    pub pod_names: PodNamesArg,
    /// Name endpoints without a hostname after their pod instead of their address
    #[arg(long, help_heading = NAMES)]
    pub endpoint_pod_names: bool,
    /// Answer NXDOMAIN for unnamed addresses in this network instead of forwarding the lookup (repeatable)
    #[arg(long = "reverse-cidr", value_name = "CIDR", help_heading = NAMES)]
    pub reverse_cidrs: Vec<Cidr>,
    /// Replace the list of kinds for the database rule (comma-separated)
    #[arg(long, value_name = "KIND", value_delimiter = ',', help_heading = NAMES)]
    pub database_kinds: Vec<String>,
    /// Treat namespaces with this prefix as installed apps
    #[arg(long, value_name = "PREFIX", default_value = crate::zone::APPLICATION_PREFIX, help_heading = NAMES)]
    pub application_prefix: String,
    /// Select the callers for which the bare name of an app resolves
    #[arg(long, value_enum, default_value_t = ApplicationCallers::Apps, help_heading = CALLERS)]
    pub application_callers: ApplicationCallers,
    /// Let this namespace capture names although it is also a top-level domain (repeatable)
    #[arg(long = "allow-tld-namespace", value_name = "NS", help_heading = NAMES)]
    pub allowed_tlds: Vec<String>,
}

/// Values of `--pod-names`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PodNamesArg {
    /// No address.
    #[default]
    Off,
    /// Any address, if the namespace exists.
    Any,
    /// Only addresses of live pods.
    Verified,
}

/// Values of `--application-callers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ApplicationCallers {
    /// Apps, and callers without a known namespace.
    #[default]
    Apps,
    /// Every caller. Whoever may create a namespace with the prefix can then claim a bare name that is not taken.
    All,
}

/// Values of `--pods`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PodsArg {
    /// Watch no pods.
    #[default]
    Off,
    /// Watch the pods of --node-name.
    Node,
    /// Watch all pods.
    All,
}

/// Values of `--rebind-protection`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RebindProtectionArg {
    /// Pass them on: upstreams of companies answer with private addresses.
    #[default]
    Off,
    /// Count and log them.
    Log,
    /// Refuse them, too.
    On,
}

/// Values of `--other-names`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OtherNamesArg {
    /// REFUSED: another server may know them.
    #[default]
    Refused,
    /// NXDOMAIN: they do not exist.
    Nxdomain,
}

/// Values of `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Human-readable lines.
    #[default]
    Text,
    /// JSON objects for log collectors.
    Json,
}

const LISTENING: &str = "Listening";
const FORWARDING: &str = "Forwarding";
const CACHE: &str = "Cache";
const ENCRYPTED: &str = "Encrypted transports";
const LIMITS: &str = "Limits";
const ADMIN: &str = "Admin and logs";

/// Flags of `callsign serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Listen on this address over UDP and TCP, or over the transport of its scheme: tls, https, quic, h3 (repeatable)
    #[arg(
            long,
            value_name = "[SCHEME://]ADDR:PORT",
            default_value = "[::]:53",
            env = "CALLSIGN_LISTEN",
            value_delimiter = ',', help_heading = LISTENING
        )]
    pub listen: Vec<String>,
    /// See [`SourceArgs`].
    #[command(flatten)]
    pub source: SourceArgs,
    /// See [`NameArgs`].
    #[command(flatten)]
    pub names: NameArgs,
    /// Set the TTL of cluster records, in seconds (0..3600)
    #[arg(long, value_name = "SECONDS", default_value_t = 5, env = "CALLSIGN_TTL", value_parser = clap::value_parser!(u32).range(0..=3600), help_heading = NAMES)]
    pub ttl: u32,
    /// Answer only clients in this network (repeatable); others get REFUSED [default: all in a pod with a service account,
    /// elsewhere private, loopback, link-local and shared addresses]
    #[arg(long = "allow-from", value_name = "CIDR", help_heading = CALLERS)]
    pub allow_from: Vec<Cidr>,
    /// Forward queries for other names to this server: ADDR, ADDR:PORT, tls://ADDR#NAME, the path of a resolv.conf, or
    /// none (repeatable) [default: /etc/resolv.conf]
    #[arg(long = "upstream", value_name = "SERVER", env = "CALLSIGN_UPSTREAM", value_delimiter = ',', help_heading = FORWARDING)]
    pub upstreams: Vec<Upstream>,
    /// Forward queries for names in this zone to these servers (repeatable; the longest zone wins); with the word
    /// into-cluster among them, their CNAMEs may lead to names of the cluster
    #[arg(long = "stub", value_name = "ZONE=SERVER", help_heading = FORWARDING)]
    pub stubs: Vec<Stub>,
    /// Count and log, or also refuse, names that upstreams resolve to private addresses; stub zones are exempt
    #[arg(long, value_enum, default_value_t = RebindProtectionArg::Off, help_heading = FORWARDING)]
    pub rebind_protection: RebindProtectionArg,
    /// Answer names outside the cluster like this, where no upstream is asked: Alpine's resolver waits five seconds after
    /// REFUSED, but a client with a second nameserver asks that
    #[arg(long, value_enum, default_value_t = OtherNamesArg::Refused, help_heading = FORWARDING)]
    pub other_names: OtherNamesArg,
    /// Trust the authorities in this PEM file for upstreams over TLS [default: the system's trust store]
    #[arg(long, value_name = "FILE", help_heading = FORWARDING)]
    pub upstream_ca: Option<PathBuf>,
    /// Forward at most this many queries at a time; answer SERVFAIL beyond that
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = FORWARDING)]
    pub max_concurrent: u32,
    /// Cache at most this many upstream replies (0: do not cache)
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(0..=10_000_000), help_heading = CACHE)]
    pub cache_entries: u32,
    /// Use at most this much memory for cached replies
    #[arg(long, value_name = "BYTES", default_value_t = 12_000_000, value_parser = clap::value_parser!(u64).range(100_000..), help_heading = CACHE)]
    pub cache_bytes: u64,
    /// Cache replies for at least this long, whatever their TTL (0..3600)
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=3600), help_heading = CACHE)]
    pub cache_min_ttl: u32,
    /// Cache replies for at most this long, whatever their TTL (1..604800)
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u32).range(1..=604_800), help_heading = CACHE)]
    pub cache_max_ttl: u32,
    /// Serve stale replies until this long after they expire, if upstreams fail (0: never)
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration, help_heading = CACHE)]
    pub cache_stale: Duration,
    /// Resolve a pod's whole search list in its first query
    #[arg(long, help_heading = FORWARDING)]
    pub complete_search: bool,
    /// Expect this domain, added by hosts, in the search lists of pods, for --complete-search (repeatable)
    #[arg(long = "search", value_name = "DOMAIN", help_heading = FORWARDING)]
    pub search: Vec<String>,
    /// Watch the Services of this namespace only; the upstreams answer for all others
    #[arg(long, value_name = "NAMESPACE", env = "CALLSIGN_WATCH_NAMESPACE", help_heading = SOURCE)]
    pub watch_namespace: Option<String>,
    /// Watch pods to learn the namespaces of callers
    #[arg(long, value_enum, default_value_t = PodsArg::Off, help_heading = CALLERS)]
    pub pods: PodsArg,
    /// Watch the pods of this node, with --pods node
    #[arg(long, value_name = "NODE", env = "NODE_NAME", help_heading = CALLERS)]
    pub node_name: Option<String>,
    /// Publish this address for ns.dns.DOMAIN (repeatable) [default: the ClusterIPs of this pod's Service, else the listening addresses]
    #[arg(long, value_name = "IP", help_heading = LISTENING)]
    pub advertise: Vec<IpAddr>,
    /// Answer UDP with this many threads per address, and TCP with as many [default: one per available processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256), help_heading = LISTENING)]
    pub workers: Option<u16>,
    /// Present the certificate chain in this PEM file to clients; reload it when the file changes
    #[arg(long, value_name = "FILE", env = "CALLSIGN_TLS_CERT", help_heading = ENCRYPTED)]
    pub tls_cert: Option<PathBuf>,
    /// Use the private key in this PEM file for --tls-cert
    #[arg(long, value_name = "FILE", env = "CALLSIGN_TLS_KEY", help_heading = ENCRYPTED)]
    pub tls_key: Option<PathBuf>,
    /// Require client certificates issued by an authority in this PEM file
    #[arg(long, value_name = "FILE", env = "CALLSIGN_TLS_CLIENT_CA", help_heading = ENCRYPTED)]
    pub tls_client_ca: Option<PathBuf>,
    /// Limit UDP replies to this many bytes (512..4096); 1232 avoids fragmentation on every network
    #[arg(long, value_name = "BYTES", default_value_t = 1232, value_parser = clap::value_parser!(u16).range(512..=4096), help_heading = LIMITS)]
    pub udp_payload: u16,
    /// Send at most this many UDP replies a second that are much longer than their query to one network (IPv4 /24, IPv6
    /// /56) without DNS cookies; half of the others are truncated, half dropped (0: no limit) [default: 0 in a pod with a service account, elsewhere 500]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_000_000), help_heading = LIMITS)]
    pub rate_limit: Option<u32>,
    /// Accept at most this many TCP connections, and as many encrypted ones
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = LIMITS)]
    pub tcp_connections: u32,
    /// Accept at most this many TCP connections per client address, and as many encrypted ones
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = LIMITS)]
    pub tcp_connections_per_address: u32,
    /// Close TCP and encrypted connections that are idle for this long
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration, help_heading = LIMITS)]
    pub tcp_idle: Duration,
    /// Serve metrics and the JSON API on this address; the API only to clients on this host, unless there is a token
    /// [default: port 9153 of all addresses, with --manifests of loopback]
    #[arg(long, value_name = "ADDR:PORT", env = "CALLSIGN_ADMIN", help_heading = ADMIN)]
    pub admin: Option<String>,
    /// Serve /health and /ready on this address, for probes
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:8080", env = "CALLSIGN_HEALTH", help_heading = ADMIN)]
    pub health: String,
    /// Serve the API also to clients on other hosts that send the token in this file (Authorization: Bearer TOKEN)
    #[arg(long, value_name = "FILE", env = "CALLSIGN_ADMIN_TOKEN_FILE", help_heading = ADMIN)]
    pub admin_token_file: Option<PathBuf>,
    /// Accept requests to --admin by this host name too, besides localhost and IP addresses (repeatable)
    #[arg(long = "admin-host", value_name = "NAME", help_heading = ADMIN)]
    pub admin_hosts: Vec<String>,
    /// Keep answering for at least this long after SIGTERM, and until no query has come for 3 s, while /ready returns 503 and clients move to other servers (0: exit at once)
    #[arg(long, value_name = "TIME", default_value = "10s", env = "CALLSIGN_LAME_DUCK", value_parser = duration, help_heading = ADMIN)]
    pub lame_duck: Duration,
    /// Keep answering for at most this long after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "30s", env = "CALLSIGN_LAME_DUCK_MAX", value_parser = duration, help_heading = ADMIN)]
    pub lame_duck_max: Duration,
    /// Save the state of the cluster to this file, and start from it if the API is unreachable
    #[arg(long, value_name = "FILE", env = "CALLSIGN_SAVED", help_heading = SOURCE)]
    pub saved: Option<PathBuf>,
    /// Use about this much memory for the objects of one namespace, and ignore what is over it
    #[arg(long, value_name = "BYTES", default_value_t = 33_554_432, value_parser = clap::value_parser!(u64).range(100_000..), help_heading = LIMITS)]
    pub namespace_budget: u64,
    /// Compare the state in memory with the API at this interval (0: never)
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration, help_heading = SOURCE)]
    pub self_check: Duration,
    /// Write logs in this format
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "CALLSIGN_LOG_FORMAT", help_heading = ADMIN)]
    pub log_format: LogFormat,
    /// Log at this level: error, warn, info, debug, trace, or TARGET=LEVEL such as callsign::cluster=debug (comma-separated)
    #[arg(long, value_name = "LEVEL", env = "CALLSIGN_LOG", help_heading = ADMIN)]
    pub log_level: Option<String>,
    /// Start metric names with this prefix; coredns selects the names and labels that CoreDNS dashboards expect
    #[arg(long, value_name = "PREFIX", default_value = "callsign", help_heading = ADMIN)]
    pub metrics_prefix: String,
    /// Read flags from this YAML file, one `flag: value` per line; the command line and the environment take precedence
    #[arg(long, value_name = "FILE", env = "CALLSIGN_CONFIG", help_heading = ADMIN)]
    pub config: Option<PathBuf>,
}
