//! The flags themselves: what each is called, what it says of itself, its default and its bounds.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{caller_block, duration};
use crate::forward::{Stub, Upstream};
use crate::zone::Cidr;

const SOURCE: &str = "Where facts come from";
const NAMES: &str = "What names mean";

/// Where facts come from: the same for every command.
#[derive(Args, Clone, Debug, Default)]
pub struct SourceArgs {
    /// Read manifests from a file, a folder (watched) or - for standard input
    #[arg(long, value_name = "PATH", env = "CALLSIGN_MANIFESTS", conflicts_with = "kubeconfig", help_heading = SOURCE)]
    pub manifests: Option<PathBuf>,
    /// Follow the cluster of this kubeconfig
    #[arg(long, value_name = "FILE", env = "CALLSIGN_KUBECONFIG", help_heading = SOURCE)]
    pub kubeconfig: Option<PathBuf>,
    /// Use this context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME", requires = "kubeconfig", help_heading = SOURCE)]
    pub context: Option<String>,
    /// Give Services of manifests that have no clusterIP an address of this block (repeatable, one of each family)
    #[arg(long = "service-cidr", value_name = "CIDR", default_values = ["10.96.0.0/16", "fd00:10:96::/112"], help_heading = SOURCE)]
    pub service_cidrs: Vec<Cidr>,
}

/// What names mean: the same for the server and for the commands that explain it.
#[derive(Args, Clone, Debug)]
pub struct NameArgs {
    /// Domain that full names end in (repeatable; the first is the one that targets are written in)
    #[arg(
        long = "cluster-domain",
        value_name = "DOMAIN",
        default_value = "cluster.local",
        env = "CALLSIGN_CLUSTER_DOMAIN",
        value_delimiter = ',', help_heading = NAMES
    )]
    pub cluster_domains: Vec<String>,
    /// Namespace that a command is about; to a server, that of callers that nothing else tells: a sidecar sets it from the
    /// downward API
    #[arg(long, short = 'n', value_name = "NS", env = "POD_NAMESPACE", help_heading = NAMES)]
    pub namespace: Option<String>,
    /// Namespace of the callers in a network (repeatable; the longest prefix wins)
    #[arg(long, value_name = "CIDR=NS", value_parser = caller_block, help_heading = NAMES)]
    pub callers: Vec<(Cidr, String)>,
    /// Which a-b-c-d.NAMESPACE.pod names exist: none, all, or those of live pods
    #[arg(long, value_enum, default_value_t = PodNamesArg::Off, help_heading = NAMES)]
    pub pod_names: PodNamesArg,
    /// Name endpoints without a hostname by their pod instead of their address
    #[arg(long, help_heading = NAMES)]
    pub endpoint_pod_names: bool,
    /// Addresses of this network that have no name do not exist (repeatable); elsewhere others are asked
    #[arg(long = "reverse-cidr", value_name = "CIDR", help_heading = NAMES)]
    pub reverse_cidrs: Vec<Cidr>,
    /// Kinds of the database rule (replaces the list)
    #[arg(long, value_name = "KIND", value_delimiter = ',', help_heading = NAMES)]
    pub database_kinds: Vec<String>,
    /// Namespaces that begin with this are applications
    #[arg(long, value_name = "PREFIX", default_value = crate::zone::APPLICATION_PREFIX, help_heading = NAMES)]
    pub application_prefix: String,
    /// Let the namespace of this name capture names although it is a top-level domain (repeatable)
    #[arg(long = "allow-tld-namespace", value_name = "NS", help_heading = NAMES)]
    pub allowed_tlds: Vec<String>,
}

/// `--pod-names`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PodNamesArg {
    /// None.
    #[default]
    Off,
    /// Every address of a namespace that exists.
    Any,
    /// Addresses of live pods.
    Verified,
}

/// `--pods`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PodsArg {
    /// Watch none.
    #[default]
    Off,
    /// Those of `--node-name`.
    Node,
    /// All.
    All,
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For collectors.
    Json,
}

const FORWARDING: &str = "Names that are not the cluster's";
const ENCRYPTED: &str = "TLS, HTTPS, QUIC";

/// Flags of `callsign serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// See [`SourceArgs`].
    #[command(flatten)]
    pub source: SourceArgs,
    /// See [`NameArgs`].
    #[command(flatten)]
    pub names: NameArgs,
    /// Answer on this address: UDP and TCP, or by a scheme in front: tls://, https://, quic:// or h3:// (repeatable)
    #[arg(
        long,
        value_name = "[SCHEME://]ADDR:PORT",
        default_value = "[::]:53",
        env = "CALLSIGN_LISTEN",
        value_delimiter = ','
    )]
    pub listen: Vec<String>,
    /// Serve health, readiness and metrics on this address
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:9153", env = "CALLSIGN_ADMIN")]
    pub admin: String,
    /// Seconds that answers may be kept (0..3600)
    #[arg(long, value_name = "SECONDS", default_value_t = 5, env = "CALLSIGN_TTL", value_parser = clap::value_parser!(u32).range(0..=3600))]
    pub ttl: u32,
    /// Answer only clients of this network (repeatable); others get REFUSED
    #[arg(long = "allow-from", value_name = "CIDR")]
    pub allow_from: Vec<Cidr>,
    /// Ask this server for what is not the cluster's: ADDR, ADDR:PORT, tls://ADDR#NAME, the path of a resolv.conf, or
    /// none (repeatable) [default: /etc/resolv.conf]
    #[arg(long = "upstream", value_name = "SERVER", env = "CALLSIGN_UPSTREAM", value_delimiter = ',', help_heading = FORWARDING)]
    pub upstreams: Vec<Upstream>,
    /// Ask these servers for the names of a zone (repeatable; the longest zone wins)
    #[arg(long = "stub", value_name = "ZONE=SERVER", help_heading = FORWARDING)]
    pub stubs: Vec<Stub>,
    /// Certificates that servers asked over TLS are trusted by, in PEM [default: the system's]
    #[arg(long, value_name = "FILE", help_heading = FORWARDING)]
    pub upstream_ca: Option<PathBuf>,
    /// Questions asked of others at a time
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = FORWARDING)]
    pub max_concurrent: u32,
    /// Answers of others that are kept (0: none)
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(0..=10_000_000), help_heading = FORWARDING)]
    pub cache_entries: u32,
    /// Octets that they may take
    #[arg(long, value_name = "OCTETS", default_value_t = 12_000_000, value_parser = clap::value_parser!(u64).range(100_000..), help_heading = FORWARDING)]
    pub cache_bytes: u64,
    /// Seconds that they are kept at least, whatever their TTL (0..3600)
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=3600), help_heading = FORWARDING)]
    pub cache_min_ttl: u32,
    /// Seconds that they are kept at most
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u32).range(1..=604_800), help_heading = FORWARDING)]
    pub cache_max_ttl: u32,
    /// How long past its time an answer stands in for one that cannot be had (0: never)
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration, help_heading = FORWARDING)]
    pub cache_stale: Duration,
    /// Find in one question what a pod's search list finds in many
    #[arg(long, help_heading = FORWARDING)]
    pub complete_search: bool,
    /// Domain that hosts add to the search lists of pods, for --complete-search (repeatable)
    #[arg(long = "search", value_name = "DOMAIN", help_heading = FORWARDING)]
    pub search: Vec<String>,
    /// Learn callers' namespaces from pods
    #[arg(long, value_enum, default_value_t = PodsArg::Off)]
    pub pods: PodsArg,
    /// Node whose pods --pods node watches
    #[arg(long, value_name = "NODE", env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// Addresses of ns.dns.DOMAIN (repeatable) [default: those listened on]
    #[arg(long, value_name = "IP")]
    pub advertise: Vec<IpAddr>,
    /// Largest UDP reply in octets (512..4096); 1232 passes every network unfragmented
    #[arg(long, value_name = "OCTETS", default_value_t = 1232, value_parser = clap::value_parser!(u16).range(512..=4096))]
    pub udp_payload: u16,
    /// Threads that answer UDP on each address [default: processors that this process may use]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// Certificate that clients of tls://, https://, quic:// and h3:// are shown, in PEM, followed by those of its authorities;
    /// read again when it changes
    #[arg(long, value_name = "FILE", env = "CALLSIGN_TLS_CERT", help_heading = ENCRYPTED)]
    pub tls_cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, value_name = "FILE", env = "CALLSIGN_TLS_KEY", help_heading = ENCRYPTED)]
    pub tls_key: Option<PathBuf>,
    /// Answer only clients with a certificate by one of these authorities, in PEM
    #[arg(long, value_name = "FILE", env = "CALLSIGN_TLS_CLIENT_CA", help_heading = ENCRYPTED)]
    pub tls_client_ca: Option<PathBuf>,
    /// TCP connections in all, and as many of encrypted transports
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub tcp_connections: u32,
    /// TCP connections of one client address, and as many encrypted ones
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub tcp_connections_per_address: u32,
    /// Time that a client has for its next message, of TCP and of encrypted transports
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    pub tcp_idle: Duration,
    /// Time to go on answering after SIGTERM, so that nobody asks a server that is gone
    #[arg(long, value_name = "TIME", default_value = "5s", env = "CALLSIGN_LAME_DUCK", value_parser = duration)]
    pub lame_duck: Duration,
    /// Write the cluster's facts to this file, and start from them while the API does not answer
    #[arg(long, value_name = "FILE", env = "CALLSIGN_SAVED")]
    pub saved: Option<PathBuf>,
    /// Time between comparisons of what is held with what the API has (0: none)
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub self_check: Duration,
    /// Form of log lines
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "CALLSIGN_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// Prefix of metric names; `coredns` names and labels them as its dashboards expect
    #[arg(long, value_name = "PREFIX", default_value = "callsign")]
    pub metrics_prefix: String,
    /// Read flags from a YAML file, `flag: value`; the command line and the environment win
    #[arg(long, value_name = "FILE", env = "CALLSIGN_CONFIG")]
    pub config: Option<PathBuf>,
}
