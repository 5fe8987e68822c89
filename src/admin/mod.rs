//! Health, readiness, metrics and reports over HTTP, for probes, scrapers and people with curl.

mod encode;
mod forwarding;
mod metrics;

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::cluster::publish::SharedStatus;
use crate::cluster::{self, Events};
use crate::forward::ForwardCache;
use crate::lifecycle::Phase;
use crate::report::{Catalog, Viewer, explain, services};
use crate::server::{Clients, EncryptedStatus, ListenerCounters, Published};

/// Maximum number of open connections. Probes and scrapers need few; others wait in the kernel's accept queue.
const MAX_CONNECTIONS: usize = 64;
/// Timeout for reading the head of a request.
const HEAD: Duration = Duration::from_secs(5);

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
}

/// Serves the admin address until the process exits.
pub async fn serve(listener: std::net::TcpListener, admin: Arc<Admin>) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return Ok(()) };
        let (stream, from) = match listener.accept().await {
            Ok((stream, from)) => (stream, from.ip().to_canonical()),
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let admin = admin.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let admin = admin.clone();
                async move { Ok::<_, Infallible>(admin.respond(&request, from).await) }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(16 * 1024);
            // An error means that the client disconnected, which needs no handling.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
            drop(permit);
        });
    }
}

impl Admin {
    async fn respond(&self, request: &Request<Incoming>, from: IpAddr) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed; use GET or HEAD\n".to_owned());
        }
        match request.uri().path() {
            "/health" | "/healthz" | "/livez" => plain(StatusCode::OK, "OK\n".to_owned()),
            "/ready" | "/readyz" => self.ready(request.uri().query().is_some_and(|query| query.contains("verbose"))),
            "/metrics" => match metrics::render(self) {
                Ok(text) => typed(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text),
                Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "cannot encode the metrics\n".to_owned()),
            },
            "/api/v1/services" => self.services(request.uri().query().unwrap_or(""), from).await,
            "/api/v1/explain" => self.explain(request.uri().query().unwrap_or(""), from),
            other => plain(
                StatusCode::NOT_FOUND,
                format!("{other} not found; use /health, /ready, /metrics, /api/v1/services or /api/v1/explain\n"),
            ),
        }
    }

    /// Returns the output of `callsign services -o json` for `?namespace=NS`, or for all namespaces. Clients other than
    /// operators see only the Services that are visible to them; see [`Viewer`].
    async fn services(&self, query: &str, from: IpAddr) -> Response<Full<Bytes>> {
        let Some(facts) = cluster::facts(&self.events).await else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "the cluster source has stopped\n".to_owned());
        };
        let catalog = Catalog::new(self.table.load_full(), facts);
        let namespace = parameter(query, "namespace");
        let viewer = Viewer::of(&catalog.zone, from);
        if let Some(namespace) = namespace.as_deref().filter(|namespace| !catalog.shows_namespace(namespace, &viewer)) {
            return plain(StatusCode::NOT_FOUND, format!("namespace {namespace} does not exist\n"));
        }
        json(&services::list_for(&catalog, namespace.as_deref(), &viewer))
    }

    /// Returns the output of `callsign explain NAME -o json` for `?name=NAME&from=NS|IP&type=TYPE`. Only operators may
    /// set `from`; for other clients, the caller is the client itself. See [`Viewer`].
    fn explain(&self, query: &str, client: IpAddr) -> Response<Full<Bytes>> {
        let Some(name) = parameter(query, "name") else {
            return plain(StatusCode::BAD_REQUEST, "no name given; use /api/v1/explain?name=api&from=web\n".to_owned());
        };
        let zone = self.table.load_full();
        let viewer = Viewer::of(&zone, client);
        let explained = || {
            let name = explain::name_of(&name)?;
            let qtype = explain::type_of(parameter(query, "type").as_deref().unwrap_or("A"))?;
            let who = match &viewer {
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

    /// Reports readiness: ready from the first sync until shutdown begins.
    fn ready(&self, verbose: bool) -> Response<Full<Bytes>> {
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
        if verbose {
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
            for upstream in self.forwarding.iter().flat_map(|cache| cache.upstreams()) {
                let state = match (upstream.looping.load(Relaxed), upstream.down.load(Relaxed)) {
                    (true, _) => "forwarding loop; not queried",
                    (_, true) => "does not reply",
                    _ => "in use",
                };
                let _ = writeln!(text, "upstream {}: {state}", upstream.server);
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

fn json(value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_string(value) {
        Ok(text) => typed(StatusCode::OK, "application/json", text + "\n"),
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "cannot encode the response\n".to_owned()),
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", text)
}

fn typed(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
