//! Flags, environment and file become one validated [`Config`]. Each tunable says its default, its bounds, and why.

mod addresses;
mod flags;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

use crate::cluster::kubernetes::Pods;
use crate::cluster::object::ParseOptions;
use crate::forward::{self, Bounds, Forwarding, Stub, Ttls, Upstream};
use crate::server::Limits;
use crate::server::encrypted::{self, Files, ListenUrl};
use crate::wire::label_of;
use crate::zone::{CallerBlock, Cidr, Domain, PodNames, Settings};

pub use addresses::{advertised, reaches};
pub use flags::{LogFormat, NameArgs, PodNamesArg, PodsArg, ServeArgs, SourceArgs};

/// A configuration that cannot be run: one line that says what, where and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct BadConfig(pub String);

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
    pub parse_options: ParseOptions,
    /// Which pods are watched.
    pub pods: Pods,
    /// What answers depend on; without `advertise`, which may depend on what is bound.
    pub settings: Settings,
    /// `--advertise`.
    pub advertise: Vec<IpAddr>,
    /// `--listen` without a scheme.
    pub listen: Vec<SocketAddr>,
    /// `--listen` with one, and what is shown there.
    pub encrypted: Option<encrypted::EncryptedOptions>,
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
                Ok(_) => Err(bad(flag, text, &"a label has letters, digits and dashes only")),
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
                    ListenUrl::from_str(text).map_err(|error| BadConfig(format!("--listen '{text}': {error}")))?;
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
            parse_options: ParseOptions { endpoint_pod_names: self.names.endpoint_pod_names },
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
    fn encrypted(&self, listen: Vec<ListenUrl>) -> Result<Option<encrypted::EncryptedOptions>, BadConfig> {
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
                Ok(Some(encrypted::EncryptedOptions { listen, files }))
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
                    Err(error) if self.upstreams.is_empty() => {
                        tracing::warn!(%error, "names that are not the cluster's are refused: there is no upstream");
                    }
                    Err(error) => return Err(BadConfig(format!("--upstream {error}"))),
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
        })
    }
}

/// Processors that this process may use: its affinity and the quota of its control group, not the machine's.
fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
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
