//! Health, readiness, metrics and reports over HTTP, for probes, scrapers and people with curl.

mod access;
mod body;
mod encode;
mod forwarding;
mod http;
mod metrics;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use hyper::{Method, Request, Response, StatusCode};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

pub use access::Access;

use self::body::Body;
use self::http::{plain, typed};
use crate::cluster::publish::SharedStatus;
use crate::cluster::{self, Events};
use crate::forward::ForwardCache;
use crate::lifecycle::Phase;
use crate::report::explain::{self, Pasted};
use crate::report::server::{ClientEntry, ResourceEntry, ServerStatus, UpstreamEntry, UpstreamState};
use crate::report::{Catalog, Viewer};
use crate::server::{Clients, EncryptedStatus, Limits, ListenerCounters, Published, StallDetector};

/// Limits of `--health`. A probe is a short connection; a client at its limit loses its own idle connections.
const HEALTH_LIMITS: Limits = Limits { connections: 256, per_address: 32, idle: Duration::from_secs(5) };
/// Limits of `--admin`.
const ADMIN_LIMITS: Limits = Limits { connections: 64, per_address: 16, idle: Duration::from_secs(5) };
/// How long a request waits for its turn to list Services.
const LISTING_WAIT: Duration = Duration::from_secs(10);
/// Interval between checks of whether the UDP workers make progress.
const CHECK: Duration = Duration::from_secs(1);

/// The state that the admin address reports on.
pub struct Admin {
    /// The published table.
    pub table: Published,
    /// Status of the control plane.
    pub status: SharedStatus,
    /// Lifecycle phase of the server.
    pub phase: watch::Receiver<Phase>,
    /// Counters of each server thread.
    pub listeners: Vec<ListenerCounters>,
    /// Open TCP connections.
    pub tcp: Arc<Clients>,
    /// Connections and counters of the encrypted transports, if there are any.
    pub encrypted: Option<EncryptedStatus>,
    /// Cache and counters of forwarding, if there are upstreams.
    pub forwarding: Option<Arc<ForwardCache>>,
    /// Channel for requesting all facts from the control plane.
    pub events: Events,
    /// `--metrics-prefix`.
    pub prefix: String,
    /// Start time of the process.
    pub started: Instant,
    /// Who may read more than health, readiness and metrics.
    pub access: Access,
    /// The worker that is stuck, if any, as `/health` reports it.
    pub stalled: watch::Sender<Option<String>>,
    /// Permits one listing at a time: each holds a copy of the facts.
    pub listing: Arc<Semaphore>,
}

/// Serves `--health`, which answers `/health` and `/ready` only, until the runtime ends. Also checks the workers.
///
/// # Errors
/// The system's error if the listener cannot be registered with the runtime.
pub async fn serve_health(
    listener: std::net::TcpListener,
    admin: Arc<Admin>,
    mut detector: StallDetector,
) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let checked = admin.clone();
    let check = async move {
        loop {
            tokio::time::sleep(CHECK).await;
            checked.stalled.send_replace(detector.check());
        }
    };
    let probes = http::serve(listener, HEALTH_LIMITS, move |request: Request<_>, from| {
        let admin = admin.clone();
        async move { admin.probe(&request, from) }
    });
    tokio::select! {
        () = check => {}
        () = probes => {}
    }
    Ok(())
}

/// Serves `--admin` until the runtime ends.
///
/// # Errors
/// The system's error if the listener cannot be registered with the runtime.
pub async fn serve(listener: std::net::TcpListener, admin: Arc<Admin>) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    http::serve(listener, ADMIN_LIMITS, move |request, from| {
        let admin = admin.clone();
        async move { admin.respond(&request, from).await }
    })
    .await;
    Ok(())
}

impl Admin {
    /// Answers a request to `--health`.
    fn probe<B>(&self, request: &Request<B>, from: IpAddr) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed; use GET or HEAD\n".to_owned());
        }
        match request.uri().path() {
            "/health" | "/healthz" | "/livez" => self.health(),
            "/ready" | "/readyz" => {
                let asks = request.uri().query().is_some_and(|query| query.contains("verbose"));
                self.ready(asks.then(|| self.access.check(request.headers(), from)))
            }
            _ => plain(
                StatusCode::NOT_FOUND,
                "not found; this address serves /health and /ready, and --admin the rest\n".to_owned(),
            ),
        }
    }

    /// Answers a request to `--admin`.
    async fn respond<B>(&self, request: &Request<B>, from: IpAddr) -> Response<Body> {
        let path = request.uri().path();
        let is_get = matches!(*request.method(), Method::GET | Method::HEAD);
        if !is_get || matches!(path, "/health" | "/healthz" | "/livez" | "/ready" | "/readyz") {
            return self.probe(request, from);
        }
        if let Err(denied) = self.access.check_host(request.headers()) {
            return denied.response();
        }
        let query = request.uri().query().unwrap_or("");
        match path {
            "/metrics" => match metrics::render(self, self.access.check(request.headers(), from).is_ok()) {
                Ok(text) => metrics::negotiated(text, request.headers()),
                Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "cannot encode the metrics\n".to_owned()),
            },
            path if path.starts_with("/api/") => {
                let viewer = match self.access.check(request.headers(), from) {
                    Err(denied) => return denied.response(),
                    // In a sidecar, which has a namespace, a loopback client may be the application.
                    Ok(()) if from.is_loopback() => Viewer::local(&self.table.load()),
                    Ok(()) => Viewer::Operator,
                };
                match path {
                    "/api/v1/services" => self.services(query, viewer).await,
                    "/api/v1/clients" => self.for_operator(&viewer, || json(&self.clients())),
                    "/api/v1/status" => self.for_operator(&viewer, || json(&self.server_status())),
                    "/api/v1/explain" => self.explain(query, &viewer, from),
                    _ => not_found(),
                }
            }
            _ => not_found(),
        }
    }

    /// Reports whether the server can answer: it fails while a worker is stuck, so that the process is restarted.
    fn health(&self) -> Response<Body> {
        match &*self.stalled.borrow() {
            Some(stalled) if *self.phase.borrow() == Phase::Serving => {
                plain(StatusCode::SERVICE_UNAVAILABLE, format!("{stalled}\n"))
            }
            _ => plain(StatusCode::OK, "OK\n".to_owned()),
        }
    }

    /// Returns the output of `callsign services -o json` for `?namespace=NS`, or for all namespaces: only the Services
    /// that the viewer may see. It is written while the client reads it.
    async fn services(&self, query: &str, viewer: Viewer) -> Response<Body> {
        let Ok(Ok(permit)) = timeout(LISTING_WAIT, self.listing.clone().acquire_owned()).await else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "another listing is in progress; try again\n".to_owned());
        };
        let Some(mut facts) = cluster::facts(&self.events).await else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "the cluster source has stopped\n".to_owned());
        };
        let namespace = parameter(query, "namespace");
        if let Some(namespace) = &namespace {
            facts.retain_namespace(namespace);
        }
        let catalog = Catalog::new(self.table.load_full(), facts);
        if let Some(namespace) = namespace.filter(|namespace| !catalog.shows_namespace(namespace, &viewer)) {
            return plain(StatusCode::NOT_FOUND, format!("namespace {namespace} does not exist\n"));
        }
        http::response(StatusCode::OK, "application/json", Body::listing(catalog, viewer, permit))
    }

    fn for_operator(&self, viewer: &Viewer, respond: impl FnOnce() -> Response<Body>) -> Response<Body> {
        match viewer {
            Viewer::Operator => respond(),
            Viewer::Caller(_) => plain(StatusCode::FORBIDDEN, "only for operators\n".to_owned()),
        }
    }

    /// Returns the clients that cause most of the upstreams' work, busiest first.
    fn clients(&self) -> Vec<ClientEntry> {
        let zone = self.table.load();
        let clients = self.forwarding.iter().flat_map(|cache| cache.busiest.clients());
        let entries = clients.map(|(address, counts)| {
            let namespace = zone.namespace_of(address).0.map(|name| name.text()).unwrap_or_default();
            ClientEntry { address, namespace, misses: counts.misses, refused: counts.refused }
        });
        entries.collect()
    }

    /// Returns the state of the source and of the upstreams, with the busiest clients.
    fn server_status(&self) -> ServerStatus {
        let status = self.status.status();
        let (services, endpoints, _) = self.table.load().size();
        let resources: BTreeSet<_> = status.heard.keys().chain(status.failures.keys()).chain(&status.pending).collect();
        let source = resources.into_iter().map(|resource| ResourceEntry {
            resource: resource.as_str().to_owned(),
            age_seconds: status.heard.get(resource).map(|heard| heard.elapsed().as_secs_f64()),
            error: status.failures.get(resource).cloned(),
        });
        ServerStatus {
            services,
            endpoints,
            source: source.collect(),
            saved_seconds: status.saved_since.map(|since| since.elapsed().as_secs_f64()),
            upstreams: self.upstreams(),
            clients: self.clients(),
        }
    }

    fn upstreams(&self) -> Vec<UpstreamEntry> {
        let upstreams = self.forwarding.iter().flat_map(|cache| cache.upstreams());
        let entries = upstreams.map(|upstream| UpstreamEntry {
            server: upstream.server.to_string(),
            state: match (upstream.looping.load(Relaxed), upstream.down.load(Relaxed)) {
                (true, _) => UpstreamState::Looping,
                (_, true) => UpstreamState::Down,
                _ => UpstreamState::InUse,
            },
        });
        entries.collect()
    }

    /// Returns the output of `callsign explain NAME -o json` for `?name=NAME&from=NS|IP&type=TYPE`. Only operators may
    /// set `from`; for the application of a sidecar, the caller is its namespace. See [`Viewer`].
    fn explain(&self, query: &str, viewer: &Viewer, client: IpAddr) -> Response<Body> {
        let Some(name) = parameter(query, "name") else {
            return plain(StatusCode::BAD_REQUEST, "no name given; use /api/v1/explain?name=api&from=web\n".to_owned());
        };
        let zone = self.table.load_full();
        let explained = || {
            let pasted = Pasted::parse(&name);
            let name = explain::name_of(&pasted.name)?;
            let default = if pasted.is_address { "PTR" } else { "A" };
            let qtype = explain::type_of(parameter(query, "type").as_deref().unwrap_or(default))?;
            let who = match viewer {
                Viewer::Operator => explain::CallerSpec::parse(&zone, parameter(query, "from").as_deref())?,
                Viewer::Caller(namespace) => {
                    explain::CallerSpec::new(namespace.clone(), format!("client address {client}"))
                }
            };
            explain::explain(&zone, &who, &name, qtype, viewer.audience())
        };
        match explained() {
            Ok(explanation) => json(&explanation),
            Err(error) => plain(StatusCode::BAD_REQUEST, format!("{error}\n")),
        }
    }

    /// Reports readiness: ready from the first sync until shutdown begins. `verbose` is `Some` if the client asks for
    /// details, with whether it may read them.
    fn ready(&self, verbose: Option<Result<(), access::Denied>>) -> Response<Body> {
        let status = self.status.status();
        let phase = *self.phase.borrow();
        let mut pending: Vec<String> = status.pending.iter().map(|part| part.as_str().to_owned()).collect();
        if phase != Phase::Serving {
            pending.push("shutting down".to_owned());
        }
        // A server that answers from saved facts is ready, but reports that they are saved.
        let saved = status.saved_since.filter(|_| phase == Phase::Serving);
        let ready = pending.is_empty() || saved.is_some();
        let mut text = match ready {
            true => "OK\n".to_owned(),
            false => format!("not ready: {}\n", pending.join(", ")),
        };
        if let Some(Err(denied)) = &verbose {
            let _ = writeln!(text, "no details: {denied}");
        }
        if let Some(Ok(())) = verbose {
            let (services, endpoints, names) = self.table.load().size();
            let _ = writeln!(text, "table: {services} services, {endpoints} endpoints, {names} addresses");
            if let Some(since) = saved {
                let pending = pending.join(", ");
                let _ = writeln!(
                    text,
                    "serving saved facts, for {:.1} s so far; not yet synced: {pending}",
                    since.elapsed().as_secs_f64()
                );
            }
            for (part, heard) in &status.heard {
                let _ = writeln!(text, "{}: last message {:.1} s ago", part.as_str(), heard.elapsed().as_secs_f64());
            }
            for upstream in self.upstreams() {
                let _ = writeln!(text, "upstream {}: {}", upstream.server, upstream.state.as_str());
            }
            for (part, reason) in &status.failures {
                let _ = writeln!(text, "{}: {reason}", part.as_str());
            }
        }
        plain(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
    }
}

/// Returns a decoded query parameter, or `None` if it is missing or empty.
fn parameter(query: &str, name: &str) -> Option<String> {
    let mut all = form_urlencoded::parse(query.as_bytes());
    all.find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.into_owned())
}

fn not_found() -> Response<Body> {
    let known = "/health, /ready, /metrics, /api/v1/services, /api/v1/explain, /api/v1/clients or /api/v1/status";
    plain(StatusCode::NOT_FOUND, format!("not found; use {known}\n"))
}

fn json(value: &impl serde::Serialize) -> Response<Body> {
    match serde_json::to_string(value) {
        Ok(text) => typed(StatusCode::OK, "application/json", text + "\n"),
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "cannot encode the response\n".to_owned()),
    }
}
