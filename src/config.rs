//! Flags, environment and file become one validated [`Config`]. Each tunable says its default, its bounds, and why.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use thiserror::Error;

use crate::cluster::kubernetes::Pods;
use crate::cluster::object::Reading;
use crate::forward::{self, Bounds, Forwarding, Stub, Ttls, Upstream};
use crate::server::Limits;
use crate::server::encrypted::{self, Endpoint, Files};
use crate::wire::label_of;
use crate::zone::{CallerBlock, Cidr, Domain, PodNames, Settings};

/// A configuration that cannot be run: one line that says what, where and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct BadConfig(pub String);

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

/// Where facts come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Manifests.
    Manifests(PathBuf),
    /// A kubeconfig and perhaps a context of it.
    Kubeconfig(PathBuf, Option<String>),
    /// The service account of the pod.
    InCluster,
    /// None was named, and this is no pod.
    Nowhere,
}

/// Everything that the server needs to know, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where facts come from.
    pub source: Source,
    /// For manifests.
    pub service_cidrs: Vec<Cidr>,
    /// What is read of objects.
    pub reading: Reading,
    /// Which pods are watched.
    pub pods: Pods,
    /// What answers depend on; without `advertise`, which may depend on what is bound.
    pub settings: Settings,
    /// `--advertise`.
    pub advertise: Vec<IpAddr>,
    /// `--listen` without a scheme.
    pub listen: Vec<SocketAddr>,
    /// `--listen` with one, and what is shown there.
    pub encrypted: Option<encrypted::Options>,
    /// `--admin`.
    pub admin: SocketAddr,
    /// `--workers`.
    pub workers: usize,
    /// TCP limits.
    pub tcp: Limits,
    /// `--lame-duck`.
    pub lame_duck: Duration,
    /// `--metrics-prefix`.
    pub metrics_prefix: String,
    /// `--saved`.
    pub saved: Option<PathBuf>,
    /// `--self-check`.
    pub self_check: Duration,
    /// Who is asked for what is not the cluster's.
    pub forwarding: Forwarding,
}

impl SourceArgs {
    /// Which source these flags mean.
    pub fn source(&self) -> Source {
        match (&self.manifests, &self.kubeconfig) {
            (Some(path), _) => Source::Manifests(path.clone()),
            (None, Some(file)) => Source::Kubeconfig(file.clone(), self.context.clone()),
            (None, None) if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => Source::InCluster,
            (None, None) => Source::Nowhere,
        }
    }
}

impl NameArgs {
    /// `--namespace`, unless it is empty: an environment variable that is set to nothing says nothing.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref().filter(|text| !text.is_empty())
    }

    /// Settings with these names, everything else at its default.
    ///
    /// # Errors
    /// Says which flag is no name.
    pub fn settings(&self) -> Result<Settings, BadConfig> {
        let bad = |flag: &str, text: &str, why: &dyn std::fmt::Display| BadConfig(format!("{flag} '{text}': {why}"));
        let mut domains = Vec::new();
        for text in &self.cluster_domains {
            let domain = Domain::new(text).map_err(|why| bad("--cluster-domain", text, &why))?;
            if !domains.contains(&domain) {
                domains.push(domain);
            }
        }
        let mut settings = Settings::new(domains);
        let label = |flag: &str, text: &str| {
            let plain = !text.contains(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_');
            match label_of(text) {
                Ok(label) if plain => Ok(label),
                Ok(_) => Err(bad(flag, text, &"a label has letters, digits and dashes only")),
                Err(why) => Err(bad(flag, text, &why)),
            }
        };
        if let Some(text) = self.namespace() {
            label("--namespace", text)?;
            settings.namespace = settings.namespace_name(text).ok();
        }
        for (block, text) in &self.callers {
            label("--callers", text)?;
            if let Ok(namespace) = settings.namespace_name(text) {
                settings.callers.push(CallerBlock { block: *block, namespace });
            }
        }
        settings.callers.sort_by_key(|caller| std::cmp::Reverse(caller.block.prefix()));
        settings.pod_names = match self.pod_names {
            PodNamesArg::Off => PodNames::Off,
            PodNamesArg::Any => PodNames::Any,
            PodNamesArg::Verified => PodNames::Verified,
        };
        settings.reverse = self.reverse_cidrs.clone();
        // The smallest block that holds an address is the zone that speaks for it.
        settings.reverse.sort_by_key(|block| std::cmp::Reverse(block.prefix()));
        if !self.database_kinds.is_empty() {
            let kinds = self.database_kinds.iter().map(|kind| label("--database-kinds", kind));
            settings.database_kinds = kinds.collect::<Result<_, _>>()?;
        }
        if !self.application_prefix.is_empty() {
            label("--application-prefix", &self.application_prefix)?;
        }
        settings.application_prefix = self.application_prefix.to_ascii_lowercase().into_bytes().into();
        let allowed = self.allowed_tlds.iter().map(|text| label("--allow-tld-namespace", text));
        settings.allowed_tlds = allowed.collect::<Result<_, _>>()?;
        Ok(settings)
    }
}

impl ServeArgs {
    /// The checked configuration.
    ///
    /// # Errors
    /// One line that names the flag, what is wrong with it and what to write.
    pub fn config(&self) -> Result<Config, BadConfig> {
        let mut settings = self.names.settings()?;
        let forwarding = self.forwarding()?;
        settings.forwarding = forwarding.is_on();
        settings.stubs = forwarding.stubs.iter().map(|stub| stub.zone.clone()).collect();
        if forwarding.upstreams.is_empty() && forwarding.file.is_none() {
            settings.forwarded_only = settings.stubs.clone();
        }
        settings.complete_search = self.complete_search && forwarding.is_on();
        settings.ttl = self.ttl;
        settings.udp_payload = self.udp_payload;
        settings.allow_from = self.allow_from.clone();
        let address = |flag: &str, text: &str| {
            let bad = || {
                BadConfig(format!("{flag} '{text}' is no address; write ADDR:PORT, such as 127.0.0.1:5300 or [::]:53"))
            };
            text.parse::<SocketAddr>().map_err(|_| bad())
        };
        let (mut listen, mut encrypted) = (Vec::new(), Vec::new());
        for text in &self.listen {
            if text.contains("://") {
                let endpoint =
                    Endpoint::from_str(text).map_err(|why| BadConfig(format!("--listen '{text}': {why}")))?;
                if !encrypted.contains(&endpoint) || endpoint.address.port() == 0 {
                    encrypted.push(endpoint);
                }
                continue;
            }
            let address = address("--listen", text)?;
            if !listen.contains(&address) || address.port() == 0 {
                listen.push(address);
            }
        }
        let node = self.node_name.as_ref().filter(|node| !node.is_empty());
        let pods = match (self.pods, node) {
            (PodsArg::Off, _) if self.names.pod_names == PodNamesArg::Verified => {
                return Err(BadConfig(
                    "--pod-names verified needs --pods all: only pods that are watched can be verified".into(),
                ));
            }
            (PodsArg::Off, _) => Pods::Off,
            (PodsArg::All, _) => Pods::All,
            (PodsArg::Node, Some(node)) => Pods::Node(node.clone()),
            (PodsArg::Node, None) => {
                return Err(BadConfig("--pods node needs --node-name (or NODE_NAME from the downward API)".into()));
            }
        };
        let plain = !self.metrics_prefix.is_empty()
            && self.metrics_prefix.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
        if !plain || self.metrics_prefix.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(BadConfig(format!(
                "--metrics-prefix '{}' is no metric name: letters, digits and _ only",
                self.metrics_prefix
            )));
        }
        Ok(Config {
            source: self.source.source(),
            service_cidrs: self.source.service_cidrs.clone(),
            reading: Reading { endpoint_pod_names: self.names.endpoint_pod_names },
            pods,
            settings,
            advertise: self.advertise.clone(),
            listen,
            encrypted: self.encrypted(encrypted)?,
            admin: address("--admin", &self.admin)?,
            workers: self.workers.map_or_else(processors, usize::from),
            tcp: Limits {
                connections: self.tcp_connections as usize,
                per_address: self.tcp_connections_per_address as usize,
                idle: self.tcp_idle,
            },
            lame_duck: self.lame_duck,
            metrics_prefix: self.metrics_prefix.clone(),
            saved: self.saved.clone(),
            self_check: self.self_check,
            forwarding,
        })
    }

    /// What is shown to clients of these.
    fn encrypted(&self, listen: Vec<Endpoint>) -> Result<Option<encrypted::Options>, BadConfig> {
        let told =
            [("--tls-cert", &self.tls_cert), ("--tls-key", &self.tls_key), ("--tls-client-ca", &self.tls_client_ca)];
        let Some(first) = listen.first() else {
            return match told.iter().find(|(_, file)| file.is_some()) {
                Some((flag, _)) => Err(BadConfig(format!(
                    "{flag} is for encrypted transports, and none is listened for: add --listen tls://[::]:853, or leave it out"
                ))),
                None => Ok(None),
            };
        };
        match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                let client_authorities = self.tls_client_ca.clone();
                let files = Files { certificate: certificate.clone(), key: key.clone(), client_authorities };
                Ok(Some(encrypted::Options { listen, files }))
            }
            _ => Err(BadConfig(format!("--listen {first} needs --tls-cert FILE and --tls-key FILE"))),
        }
    }

    /// Who is asked, and how much is kept.
    fn forwarding(&self) -> Result<Forwarding, BadConfig> {
        let default = [Upstream::File(forward::RESOLV_CONF.into())];
        let told = if self.upstreams.is_empty() { &default[..] } else { &self.upstreams };
        let (mut upstreams, mut file) = (Vec::new(), None);
        for upstream in told {
            match upstream {
                Upstream::None if told.len() > 1 => {
                    return Err(BadConfig("--upstream none stands alone: leave it out, or the other upstreams".into()));
                }
                Upstream::None => {}
                Upstream::Server(server) => upstreams.push(server.clone()),
                Upstream::File(_) if told.len() > 1 => {
                    return Err(BadConfig("--upstream: a resolv.conf stands alone; name its servers instead".into()));
                }
                Upstream::File(path) => match forward::read(path) {
                    Ok(servers) => {
                        upstreams = servers;
                        file = Some(path.clone());
                    }
                    // Nobody asked for this file: without it there are no upstreams, as there were none before.
                    Err(why) if self.upstreams.is_empty() => {
                        tracing::warn!(%why, "names that are not the cluster's are refused: there is no upstream");
                    }
                    Err(why) => return Err(BadConfig(format!("--upstream {why}"))),
                },
            }
        }
        let mut stubs: Vec<Stub> = Vec::new();
        for stub in &self.stubs {
            match stubs.iter_mut().find(|known| known.zone == stub.zone) {
                Some(known) => known.servers.extend(stub.servers.iter().cloned()),
                None => stubs.push(stub.clone()),
            }
        }
        stubs.sort_by_key(|stub| std::cmp::Reverse(stub.zone.labels));
        if self.cache_min_ttl > self.cache_max_ttl {
            return Err(BadConfig("--cache-min-ttl is more than --cache-max-ttl".into()));
        }
        let domain = |text: &String| Domain::new(text).map_err(|why| BadConfig(format!("--search '{text}': {why}")));
        Ok(Forwarding {
            upstreams,
            file,
            stubs,
            authorities: self.upstream_ca.clone(),
            concurrent: self.max_concurrent as usize,
            bounds: Bounds { entries: self.cache_entries as usize, octets: self.cache_bytes as usize },
            ttls: Ttls { floor: self.cache_min_ttl, ceiling: self.cache_max_ttl },
            stale: self.cache_stale,
            search: self.search.iter().map(domain).collect::<Result<_, _>>()?,
        })
    }
}

/// Processors that this process may use: its affinity and the quota of its control group, not the machine's.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The addresses of `ns.dns.Z`: `--advertise`, else those listened on, without link-local and loopback ones when there
/// are others. A wildcard stands for the address that this machine speaks to others from.
pub fn advertised(config: &Config, bound: &[SocketAddr]) -> Vec<IpAddr> {
    if !config.advertise.is_empty() {
        return config.advertise.clone();
    }
    let mut all: Vec<IpAddr> = Vec::new();
    for address in bound.iter().map(SocketAddr::ip) {
        match address {
            IpAddr::V4(v4) if v4.is_unspecified() => {
                all.push(own_address(Ipv4Addr::new(192, 0, 2, 1).into()).unwrap_or(Ipv4Addr::LOCALHOST.into()))
            }
            IpAddr::V6(v6) if v6.is_unspecified() => {
                let v4 = own_address(Ipv4Addr::new(192, 0, 2, 1).into()).unwrap_or(Ipv4Addr::LOCALHOST.into());
                all.push(v4);
                all.push(
                    own_address(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into())
                        .unwrap_or(Ipv6Addr::LOCALHOST.into()),
                );
            }
            address => all.push(address),
        }
    }
    let local = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
    };
    if all.iter().any(|ip| !local(ip)) {
        all.retain(|ip| !local(ip));
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// Whether a packet to `address` comes to a socket that is bound to `bound`.
pub fn reaches(address: SocketAddr, bound: SocketAddr) -> bool {
    let (ip, own) = (address.ip().to_canonical(), bound.ip().to_canonical());
    // `[::]` takes IPv4 as well.
    let family = own.is_ipv6() && own.is_unspecified() || ip.is_ipv4() == own.is_ipv4();
    // An address of this machine is one that can be bound.
    let here = || ip.is_loopback() || ip.is_unspecified() || std::net::UdpSocket::bind((ip, 0)).is_ok();
    address.port() == bound.port() && family && (ip == own || own.is_unspecified() && here())
}

/// The address that a packet to `other` would leave from. Connecting a UDP socket sends nothing; `other` is an address
/// for documentation (RFC 5737, RFC 3849), which leads along the default route.
fn own_address(other: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if other.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind((any, 0)).ok()?;
    socket.connect((other, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// A time such as `5s`, `500ms`, `2m` or `0`.
///
/// # Errors
/// Shows how to write one.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("'{text}' is no time; write 500ms, 5s or 2m");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| bad())?;
    let seconds = match unit {
        "ms" => number / 1000.0,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        "" if number == 0.0 => 0.0,
        _ => return Err(bad()),
    };
    Duration::try_from_secs_f64(seconds).ok().filter(|time| *time <= Duration::from_secs(7 * 86_400)).ok_or_else(bad)
}

fn caller_block(text: &str) -> Result<(Cidr, String), String> {
    let bad = || format!("'{text}': write CIDR=NAMESPACE, such as 10.244.3.0/24=web");
    let (block, namespace) = text.split_once('=').ok_or_else(bad)?;
    let block = Cidr::from_str(block).map_err(|why| why.to_string())?;
    if namespace.is_empty() || label_of(namespace).is_err() {
        return Err(bad());
    }
    Ok((block, namespace.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, expected) in [("5s", 5000), ("500ms", 500), ("2m", 120_000), ("0", 0), ("1.5s", 1500)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(expected)), "{text}");
        }
        for text in ["", "5", "s", "-1s", "5 s", "5d", "1e99s", "400h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn callers() {
        assert!(caller_block("10.0.0.0/8=web").is_ok());
        for text in ["", "web", "10.0.0.0/8", "10.0.0.0/8=", "10.0.0.0/40=web", &format!("::/0={}", "a".repeat(64))] {
            assert!(caller_block(text).is_err(), "{text}");
        }
    }
}
