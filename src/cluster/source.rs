//! Opens a source of facts: manifests, or the Kubernetes API through a kubeconfig or a service account.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{ClientBuilder, ConfigExt as _};
use serde_json::Value;
use thiserror::Error;
use tokio::runtime::Handle;
use tower::{BoxError, ServiceBuilder};

use super::kubernetes::{self, Pods, Scope};
use super::manifests::{ManifestError, ManifestOptions, Manifests};
use super::object::ParseOptions;
use super::{Event, Events, Resource, error_chain};
use crate::zone::Cidr;

/// Timeout for connecting to the API.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection to the API that is idle for this long is probed, again at the second interval, and is dead after the
/// third. Without that, a node that vanished would leave a watch open, and the table stale, for minutes.
const KEEPALIVE: (Duration, Duration, Duration) =
    (Duration::from_secs(10), Duration::from_secs(5), Duration::from_secs(25));

/// The token of a pod's service account.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// The source of the facts about the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file or folder of manifests, or `-` for standard input.
    Manifests(PathBuf),
    /// A kubeconfig, and optionally one of its contexts.
    Kubeconfig(PathBuf, Option<String>),
    /// The service account of the pod.
    InCluster,
    /// No source was named, and the process does not run in a pod.
    Unspecified,
}

/// A source that cannot be opened.
#[derive(Debug, Error)]
pub enum SourceError {
    /// No source is configured.
    #[error("no source; set --manifests PATH or --kubeconfig FILE, or run in a pod with a service account")]
    Unspecified,
    /// The manifests cannot be read.
    #[error(transparent)]
    Manifests(#[from] ManifestError),
    /// The pod has no token of a service account.
    #[error(
        "no service account token is mounted in this pod ({TOKEN}); set automountServiceAccountToken: true in the pod's \
         spec, which overrides its ServiceAccount, or set --kubeconfig or --manifests"
    )]
    NoToken,
    /// The kubeconfig or the service account does not load.
    #[error("{what}: {reason}")]
    Credentials {
        /// The file, or the service account.
        what: String,
        /// The error, with its causes.
        reason: String,
    },
}

impl SourceError {
    /// Whether the configuration is wrong, as opposed to a source that is missing or unavailable.
    pub fn is_misconfigured(&self) -> bool {
        matches!(
            self,
            SourceError::NoToken
                | SourceError::Credentials { .. }
                | SourceError::Manifests(ManifestError::Syntax { .. })
        )
    }
}

/// A source, and how to follow it.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// The source.
    pub source: Source,
    /// `--service-cidr`, for manifests.
    pub service_cidrs: Vec<Cidr>,
    /// How objects are parsed.
    pub parse_options: ParseOptions,
    /// The only namespace that is watched, if not all are.
    pub namespace: Option<String>,
    /// Which pods are watched.
    pub pods: Pods,
    /// Interval between self-checks; zero disables them.
    pub self_check: Duration,
}

/// A source that has been opened and sends its events.
pub struct OpenSource {
    /// The resources whose first sync must be complete before the zone counts as synced.
    pub resources: Vec<Resource>,
    /// Events that are available already.
    pub first: Vec<Event>,
    /// The client of the API, if the source is an API.
    pub client: Option<kube::Client>,
}

impl SourceOptions {
    /// Opens the source, which sends to `events` until the runtime shuts down.
    ///
    /// # Errors
    /// Everything that can fail before the first event: files, credentials.
    pub fn follow(&self, runtime: &Handle, events: &Events) -> Result<OpenSource, SourceError> {
        let _guard = runtime.enter();
        if let Source::Manifests(path) = &self.source {
            let (manifests, mut first) = self.open_manifests(path)?;
            first.push(Event::Synced(Resource::Manifests));
            tokio::spawn(manifests.follow(events.clone()));
            return Ok(OpenSource { resources: vec![Resource::Manifests], first, client: None });
        }
        let client = self.source.client(runtime)?;
        let scope = Scope { namespace: self.namespace.as_deref(), pods: &self.pods };
        let resources = kubernetes::follow(&client, self.parse_options, &scope, self.self_check, events);
        Ok(OpenSource { resources, first: Vec::new(), client: Some(client) })
    }

    /// Reads manifests once.
    ///
    /// # Errors
    /// A path or file cannot be read. The error names it.
    pub fn open_manifests(&self, path: &Path) -> Result<(Manifests, Vec<Event>), ManifestError> {
        let (parse_options, service_cidrs) = (self.parse_options, self.service_cidrs.clone());
        Manifests::open(ManifestOptions { path: path.to_path_buf(), parse_options, service_cidrs })
    }

    /// Reads manifests once, and shows each object as it is written. See [`Manifests::inspect`].
    pub fn inspect_manifests(
        &self,
        path: &Path,
        each: &mut dyn FnMut(&str, &Value),
    ) -> (Vec<Event>, Vec<ManifestError>) {
        let (parse_options, service_cidrs) = (self.parse_options, self.service_cidrs.clone());
        Manifests::inspect(ManifestOptions { path: path.to_path_buf(), parse_options, service_cidrs }, each)
    }
}

impl Source {
    /// Creates a client of the API without connecting to it.
    ///
    /// # Errors
    /// The kubeconfig or the service account does not load, or the source is not an API.
    pub fn client(&self, runtime: &Handle) -> Result<kube::Client, SourceError> {
        let (what, loaded) = match self {
            Source::Manifests(_) | Source::Unspecified => return Err(SourceError::Unspecified),
            Source::Kubeconfig(path, context) => {
                let what = format!("kubeconfig {}", path.display());
                (what, runtime.block_on(load_kubeconfig(path, context.clone())))
            }
            Source::InCluster => {
                ("service account".to_owned(), kube::Config::incluster().map_err(|error| error_chain(&error)))
            }
        };
        let failed = |reason: String| SourceError::Credentials { what: what.clone(), reason };
        let mut loaded = loaded.map_err(|reason| match self {
            Source::InCluster if !Path::new(TOKEN).exists() => SourceError::NoToken,
            _ => failed(reason),
        })?;
        loaded.connect_timeout = Some(CONNECT_TIMEOUT);
        loaded.read_timeout = None;
        // The watcher has its own backoff, and a 504 may mean "too large resource version", which no retry cures.
        loaded.default_retry = false;
        let _guard = runtime.enter();
        client(loaded).map_err(|error| failed(error_chain(&error)))
    }
}

/// Creates a client as [`kube::Client::try_from`] does, over connections that notice when the other side has vanished.
fn client(config: kube::Config) -> kube::Result<kube::Client> {
    // The proxy of a kubeconfig has connections of its own.
    if config.proxy_url.is_some() {
        return kube::Client::try_from(config);
    }
    let (idle, interval, dead) = KEEPALIVE;
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_keepalive(Some(idle));
    connector.set_keepalive_interval(Some(interval));
    connector.set_tcp_user_timeout(Some(dead));
    let connector = config.rustls_https_connector_with_connector(connector)?;
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
    let api = config.cluster_url.to_string();
    let api = api.trim_end_matches('/').to_owned();
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        // The system's errors do not say which address they are about.
        .map_err(move |error| BoxError::from(format!("{api}: {}", error_chain(&error))))
        .service(http);
    Ok(ClientBuilder::new(service, config.default_namespace).build())
}

async fn load_kubeconfig(path: &Path, context: Option<String>) -> Result<kube::Config, String> {
    // KUBECONFIG may name several files; the first to set a value wins. Some of them may be missing.
    let paths: Vec<_> = std::env::split_paths(path).filter(|path| !path.as_os_str().is_empty()).collect();
    let existing: Vec<_> = paths.iter().filter(|path| path.exists()).collect();
    let mut merged = kube::config::Kubeconfig::default();
    for path in if existing.is_empty() { paths.iter().collect() } else { existing } {
        let next = kube::config::Kubeconfig::read_from(path).map_err(|error| error_chain(&error))?;
        merged = merged.merge(next).map_err(|error| error_chain(&error))?;
    }
    let options = kube::config::KubeConfigOptions { context, ..Default::default() };
    kube::Config::from_custom_kubeconfig(merged, &options).await.map_err(|error| error_chain(&error))
}
