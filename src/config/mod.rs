//! Turns flags, environment and configuration file into one validated [`Config`].

mod addresses;
mod flags;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use jiff::SignedDuration;
use thiserror::Error;

use crate::admin::Access;
use crate::cluster::kubernetes::Pods;
use crate::cluster::object::ParseOptions;
use crate::cluster::source::{Source, SourceOptions};
use crate::forward::{self, Bounds, Forwarding, RebindProtection, Stub, Ttls, Upstream};
use crate::lifecycle::LameDuck;
use crate::sandbox::Files;
use crate::server::encrypted::{self, EncryptedOptions, ListenUrl};
use crate::server::{Limits, Listen};
use crate::wire::label_of;
use crate::zone::{CallerBlock, Cidr, Domain, NamespaceName, PodNames, Settings};

pub use addresses::{UpstreamLoop, advertised, refuse_loops};
pub use flags::{
    ApplicationCallers, LogFormat, NameArgs, OtherNamesArg, PodNamesArg, PodsArg, RebindProtectionArg, ServeArgs,
    SourceArgs,
};

/// The longest duration of a flag: a week.
const MAX_DURATION: Duration = Duration::from_secs(7 * 86_400);
/// Default of `--rate-limit` outside of pods.
const RATE_LIMIT: u32 = 500;

/// An invalid configuration: one line that names the flag, the reason and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct BadConfig(pub String);

/// The validated configuration of the server.
#[derive(Clone, Debug)]
pub struct Config {
    /// The source of the facts, and how to follow it.
    pub source: SourceOptions,
    /// Settings of the zone, except the advertised addresses: these may depend on the bound ones.
    pub settings: Settings,
    /// `--advertise`.
    pub advertise: Vec<IpAddr>,
    /// The namespace of the server's pod, if it runs in one.
    pub own_namespace: Option<NamespaceName>,
    /// What to listen on for DNS.
    pub listen: Listen,
    /// `--rate-limit`: replies over UDP a second to one network; 0: no limit.
    pub rate_limit: u32,
    /// `--admin`.
    pub admin: SocketAddr,
    /// `--health`.
    pub health: SocketAddr,
    /// `--admin-host` and `--admin-token-file`.
    pub access: Access,
    /// `--lame-duck` and `--lame-duck-max`.
    pub lame_duck: LameDuck,
    /// `--metrics-prefix`.
    pub metrics_prefix: String,
    /// `--namespace-budget` in octets.
    pub namespace_budget: usize,
    /// `--saved`.
    pub saved: Option<PathBuf>,
    /// Upstreams, stub zones and cache bounds.
    pub forwarding: Forwarding,
}

impl Config {
    /// Returns the files that a server with this configuration needs.
    pub fn files(&self) -> Files {
        let mut files = Files::default();
        // Standard input (-) needs no file.
        if let Source::Manifests(path) = &self.source.source
            && path.as_os_str() != "-"
        {
            // Another folder, or another link, may take the place of a folder.
            let places = [std::path::absolute(path).ok(), path.canonicalize().ok()];
            let folders = places.iter().flatten().filter(|place| place.is_dir()).filter_map(|place| place.parent());
            files.read.extend(folders.filter(|folder| folder.parent().is_some()).map(Path::to_path_buf));
            files.read.push(path.clone());
        }
        if let Some(options) = &self.listen.encrypted {
            let encrypted::Files { certificate, key, client_authorities } = &options.files;
            files.read.extend([certificate, key].into_iter().chain(client_authorities).cloned());
        }
        let Forwarding { file, authorities, .. } = &self.forwarding;
        files.read.extend([file, authorities, &self.access.token_file].into_iter().flatten().cloned());
        files.write.extend(self.saved.clone());
        files
    }
}

impl SourceArgs {
    /// Returns the source that these flags select.
    pub fn source(&self) -> Source {
        match (&self.manifests, &self.kubeconfig) {
            (Some(path), _) => Source::Manifests(path.clone()),
            (None, Some(file)) => Source::Kubeconfig(file.clone(), self.context.clone()),
            (None, None) if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => Source::InCluster,
            (None, None) => Source::Unspecified,
        }
    }

    /// Returns the source that these flags select, and how to read it for commands: pods are not watched.
    pub fn options(&self, names: &NameArgs) -> SourceOptions {
        SourceOptions {
            source: self.source(),
            service_cidrs: self.service_cidrs.clone(),
            parse_options: ParseOptions { endpoint_pod_names: names.endpoint_pod_names, for_commands: true },
            namespace: None,
            pods: Pods::Off,
            self_check: Duration::ZERO,
        }
    }
}

impl NameArgs {
    /// Returns `--namespace`, unless it is empty: an empty environment variable counts as unset.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref().filter(|text| !text.is_empty())
    }

    /// Returns the settings that these flags describe, with everything else at its default.
    ///
    /// # Errors
    /// Names the flag whose value is not a valid name.
    pub fn settings(&self) -> Result<Settings, BadConfig> {
        let bad =
            |flag: &str, text: &str, error: &dyn std::fmt::Display| BadConfig(format!("{flag} '{text}': {error}"));
        let mut domains = Vec::new();
        for text in &self.cluster_domains {
            let domain = Domain::new(text).map_err(|error| bad("--cluster-domain", text, &error))?;
            if !domains.contains(&domain) {
                domains.push(domain);
            }
        }
        let mut settings = Settings::new(domains);
        let label = |flag: &str, text: &str| {
            let plain = !text.contains(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_');
            match label_of(text) {
                Ok(label) if plain => Ok(label),
                Ok(_) => Err(bad(flag, text, &"only letters, digits, dashes and underscores are allowed")),
                Err(error) => Err(bad(flag, text, &error)),
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
        // The smallest block that contains an address is its reverse zone.
        settings.reverse.sort_by_key(|block| std::cmp::Reverse(block.prefix()));
        if !self.database_kinds.is_empty() {
            let kinds = self.database_kinds.iter().map(|kind| label("--database-kinds", kind));
            settings.database_kinds = kinds.collect::<Result<_, _>>()?;
        }
        if !self.application_prefix.is_empty() {
            label("--application-prefix", &self.application_prefix)?;
        }
        settings.application_prefix = self.application_prefix.to_ascii_lowercase().into_bytes().into();
        settings.application_callers_all = self.application_callers == ApplicationCallers::All;
        let allowed = self.allowed_tlds.iter().map(|text| label("--allow-tld-namespace", text));
        settings.allowed_tlds = allowed.collect::<Result<_, _>>()?;
        Ok(settings)
    }
}

impl ServeArgs {
    /// Validates the flags.
    ///
    /// # Errors
    /// One line that names the flag, the reason and the remedy.
    pub fn config(&self) -> Result<Config, BadConfig> {
        let mut settings = self.names.settings()?;
        let forwarding = self.forwarding()?;
        settings.forwarding = forwarding.is_on();
        settings.stubs = forwarding.stubs.iter().map(|stub| stub.zone.clone()).collect();
        if forwarding.upstreams.is_empty() && forwarding.file.is_none() {
            settings.forwarded_only = settings.stubs.clone();
        }
        settings.others_are_missing = self.other_names == OtherNamesArg::Nxdomain;
        if settings.others_are_missing && self.watch_namespace.as_deref().is_some_and(|text| !text.is_empty()) {
            return Err(BadConfig(
                "--other-names nxdomain denies the names of other namespaces, which --watch-namespace leaves to the \
                 upstreams; remove one of them"
                    .into(),
            ));
        }
        settings.complete_search = self.complete_search && forwarding.is_on();
        // An empty environment variable counts as unset.
        let watched = self.watch_namespace.as_deref().filter(|text| !text.is_empty());
        settings.watched = match watched.map(|text| (text, settings.namespace_name(text))) {
            None => None,
            // The name becomes part of paths of the API.
            Some((text, Ok(name))) if text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-') => Some(name),
            Some((text, Ok(_))) => {
                return Err(BadConfig(format!("invalid --watch-namespace '{text}'; use letters, digits and dashes")));
            }
            Some((text, Err(error))) => return Err(BadConfig(format!("--watch-namespace '{text}': {error}"))),
        };
        if settings.watched.is_some() {
            // Private addresses may be those of other namespaces, which the upstream knows.
            settings.empty_zones.clear();
        }
        settings.ttl = self.ttl;
        settings.udp_payload = self.udp_payload;
        settings.allow_from = self.allow_from.clone();
        if settings.allow_from.is_empty() && !is_in_pod() {
            settings.allow_from = private_networks();
        }
        let address = |flag: &str, text: &str| {
            let bad = || {
                BadConfig(format!("{flag} '{text}' is not an address; write ADDR:PORT, e.g. 127.0.0.1:5300 or [::]:53"))
            };
            text.parse::<SocketAddr>().map_err(|_| bad())
        };
        let (mut plain, mut encrypted) = (Vec::new(), Vec::new());
        for text in &self.listen {
            if text.contains("://") {
                let url =
                    ListenUrl::from_str(text).map_err(|error| BadConfig(format!("--listen '{text}': {error}")))?;
                if !encrypted.contains(&url) || url.address.port() == 0 {
                    encrypted.push(url);
                }
                continue;
            }
            let address = address("--listen", text)?;
            if !plain.contains(&address) || address.port() == 0 {
                plain.push(address);
            }
        }
        let node = self.node_name.as_ref().filter(|node| !node.is_empty());
        let pods = match (self.pods, node) {
            (PodsArg::Off, _) if self.names.pod_names == PodNamesArg::Verified => {
                return Err(BadConfig("--pod-names verified can only verify watched pods; add --pods all".into()));
            }
            (PodsArg::Off, _) => Pods::Off,
            (PodsArg::All, _) => Pods::All,
            (PodsArg::Node, Some(node)) => Pods::Node(node.clone()),
            (PodsArg::Node, None) => {
                return Err(BadConfig("--pods node needs --node-name, or NODE_NAME from the downward API".into()));
            }
        };
        let is_plain = !self.metrics_prefix.is_empty()
            && self.metrics_prefix.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
        if !is_plain || self.metrics_prefix.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(BadConfig(format!(
                "invalid --metrics-prefix '{}'; use letters, digits and underscores, and do not start with a digit",
                self.metrics_prefix
            )));
        }
        let own_namespace = std::fs::read_to_string(POD_NAMESPACE).ok();
        let own_namespace = own_namespace.and_then(|text| settings.namespace_name(text.trim()).ok());
        Ok(Config {
            source: SourceOptions {
                namespace: watched.map(str::to_owned),
                pods,
                self_check: self.self_check,
                parse_options: ParseOptions { endpoint_pod_names: self.names.endpoint_pod_names, for_commands: false },
                ..self.source.options(&self.names)
            },
            namespace_budget: self.namespace_budget as usize,
            settings,
            advertise: self.advertise.clone(),
            own_namespace,
            listen: Listen {
                plain,
                encrypted: self.encrypted(encrypted)?,
                workers: self.workers.map_or_else(processors, usize::from),
                limits: Limits {
                    connections: self.tcp_connections as usize,
                    per_address: self.tcp_connections_per_address as usize,
                    idle: self.tcp_idle,
                },
            },
            rate_limit: self.rate_limit.unwrap_or(if is_in_pod() { 0 } else { RATE_LIMIT }),
            admin: match (&self.admin, &self.source.manifests) {
                (Some(text), _) => address("--admin", text)?,
                // A server of manifests usually runs on a developer's machine, and has no remote scrapers.
                (None, Some(_)) => SocketAddr::from(([127, 0, 0, 1], ADMIN_PORT)),
                (None, None) => SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, ADMIN_PORT)),
            },
            health: address("--health", &self.health)?,
            access: self.access()?,
            lame_duck: LameDuck { least: self.lame_duck, most: self.lame_duck_max },
            metrics_prefix: self.metrics_prefix.clone(),
            saved: self.saved.clone(),
            forwarding,
        })
    }

    /// Checks the token file once, so that a mistake shows at the start.
    fn access(&self) -> Result<Access, BadConfig> {
        if let Some(path) = &self.admin_token_file {
            let bad =
                |reason: &dyn std::fmt::Display| BadConfig(format!("--admin-token-file {}: {reason}", path.display()));
            let text = std::fs::read(path).map_err(|error| bad(&error))?;
            if text.trim_ascii().is_empty() {
                return Err(bad(&"the file is empty; write a random token to it"));
            }
        }
        Ok(Access { hosts: self.admin_hosts.clone(), token_file: self.admin_token_file.clone() })
    }

    /// Pairs the encrypted listeners with their certificate files.
    fn encrypted(&self, listen: Vec<ListenUrl>) -> Result<Option<EncryptedOptions>, BadConfig> {
        let given =
            [("--tls-cert", &self.tls_cert), ("--tls-key", &self.tls_key), ("--tls-client-ca", &self.tls_client_ca)];
        let Some(first) = listen.first() else {
            return match given.iter().find(|(_, file)| file.is_some()) {
                Some((flag, _)) => Err(BadConfig(format!(
                    "{flag} needs an encrypted listener; add --listen tls://[::]:853, or remove {flag}"
                ))),
                None => Ok(None),
            };
        };
        match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                let client_authorities = self.tls_client_ca.clone();
                let files = encrypted::Files { certificate: certificate.clone(), key: key.clone(), client_authorities };
                Ok(Some(EncryptedOptions { listen, files }))
            }
            _ => Err(BadConfig(format!("--listen {first} needs --tls-cert FILE and --tls-key FILE"))),
        }
    }

    /// Resolves the upstreams and stub zones, and checks the bounds of the cache.
    fn forwarding(&self) -> Result<Forwarding, BadConfig> {
        let default = [Upstream::File(forward::RESOLV_CONF.into())];
        let given = if self.upstreams.is_empty() { &default[..] } else { &self.upstreams };
        let (mut upstreams, mut file) = (Vec::new(), None);
        for upstream in given {
            match upstream {
                Upstream::None if given.len() > 1 => {
                    return Err(BadConfig("--upstream none excludes other upstreams; remove it, or the others".into()));
                }
                Upstream::None => {}
                Upstream::Server(server) => upstreams.push(server.clone()),
                Upstream::File(_) if given.len() > 1 => {
                    return Err(BadConfig("--upstream FILE excludes other upstreams; name its servers instead".into()));
                }
                Upstream::File(path) => match forward::read(path) {
                    Ok(servers) => {
                        upstreams = servers;
                        file = Some(path.clone());
                    }
                    // A container may start before this file is written. Any other path is more likely a mistake.
                    Err(error) if path == Path::new(forward::RESOLV_CONF) => {
                        tracing::warn!(%error, "no upstream until the file lists nameservers");
                        file = Some(path.clone());
                    }
                    Err(error) => return Err(BadConfig(format!("--upstream {error}"))),
                },
            }
        }
        let mut stubs: Vec<Stub> = Vec::new();
        for stub in &self.stubs {
            match stubs.iter_mut().find(|known| known.zone == stub.zone) {
                Some(known) => {
                    known.servers.extend(stub.servers.iter().cloned());
                    known.into_cluster |= stub.into_cluster;
                }
                None => stubs.push(stub.clone()),
            }
        }
        stubs.sort_by_key(|stub| std::cmp::Reverse(stub.zone.labels));
        if self.cache_min_ttl > self.cache_max_ttl {
            return Err(BadConfig(
                "--cache-min-ttl exceeds --cache-max-ttl; lower it, or raise --cache-max-ttl".into(),
            ));
        }
        let domain =
            |text: &String| Domain::new(text).map_err(|error| BadConfig(format!("--search '{text}': {error}")));
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
            rebind: match self.rebind_protection {
                RebindProtectionArg::Off => RebindProtection::Off,
                RebindProtectionArg::Log => RebindProtection::Log,
                RebindProtectionArg::On => RebindProtection::On,
            },
        })
    }
}

/// Port of `--admin`, as in CoreDNS.
const ADMIN_PORT: u16 = 9153;
/// The namespace of a pod with a service account.
const POD_NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// Whether this is a pod with a service account. Its clients may have any address, and NetworkPolicies decide which of
/// them reach it; elsewhere, a server that answers everyone would be an open resolver.
fn is_in_pod() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
        && Path::new("/var/run/secrets/kubernetes.io/serviceaccount/token").exists()
}

/// The networks that are not on the public internet: loopback, private (RFC 1918, RFC 4193), shared (RFC 6598) and
/// link-local (RFC 3927, RFC 4291).
fn private_networks() -> Vec<Cidr> {
    let networks = ["127.0.0.0/8", "10.0.0.0/8", "192.168.0.0/16", "172.16.0.0/12", "100.64.0.0/10", "169.254.0.0/16"];
    networks.iter().chain(&["::1/128", "fc00::/7", "fe80::/10"]).filter_map(|text| text.parse().ok()).collect()
}

/// Number of processors available to this process, by its affinity and its cgroup quota.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Parses a duration such as `5s`, `500ms`, `2m`, `1h` or `0`, of seven days at most.
///
/// # Errors
/// The text is not such a duration; the message shows the syntax.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("invalid duration '{text}'; write 500ms, 5s, 2m or 1h, at most 168h");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let parsed = text.parse::<SignedDuration>().ok().filter(|_| !text.contains(char::is_whitespace));
    parsed.and_then(|time| Duration::try_from(time).ok()).filter(|time| *time <= MAX_DURATION).ok_or_else(bad)
}

fn caller_block(text: &str) -> Result<(Cidr, String), String> {
    let bad = || format!("invalid mapping '{text}'; write CIDR=NAMESPACE, such as 10.244.3.0/24=web");
    let (block, namespace) = text.split_once('=').ok_or_else(bad)?;
    let block = Cidr::from_str(block).map_err(|error| error.to_string())?;
    if namespace.is_empty() || label_of(namespace).is_err() {
        return Err(bad());
    }
    Ok((block, namespace.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_parsed_or_rejected() {
        for (text, expected) in [("5s", 5000), ("500ms", 500), ("2m", 120_000), ("0", 0), ("1.5s", 1500)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(expected)), "{text}");
        }
        for text in ["", "5", "s", "-1s", "5 s", "5d", "1e99s", "400h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn caller_mappings_are_parsed_or_rejected() {
        assert!(caller_block("10.0.0.0/8=web").is_ok());
        for text in ["", "web", "10.0.0.0/8", "10.0.0.0/8=", "10.0.0.0/40=web", &format!("::/0={}", "a".repeat(64))] {
            assert!(caller_block(text).is_err(), "{text}");
        }
    }
}
