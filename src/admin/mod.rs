//! Health, readiness and metrics over HTTP, for probes, scrapers and people with curl.

mod forwarding;
mod metrics;

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
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
use crate::server::encrypted::EncryptedStats;
use crate::server::{Clients, Counters, Published};
pub use metrics::ListenerCounters;

/// Probes and scrapers need few connections; more wait in the kernel's queue.
const CONNECTIONS: usize = 64;
/// Time for a request's head.
const HEAD: Duration = Duration::from_secs(5);

/// What the admin plane looks at.
pub struct Admin {
    /// The table.
    pub table: Published,
    /// The control plane.
    pub status: SharedStatus,
    /// Where the server is in its life.
    pub phase: watch::Receiver<Phase>,
    /// Counters of each server thread.
    pub listeners: Vec<ListenerCounters>,
    /// TCP connections that are open.
    pub tcp: Arc<Clients>,
    /// The same of encrypted transports, and what is counted of them, if any is served.
    pub encrypted: Option<(Arc<Clients>, Arc<EncryptedStats>)>,
    /// What is kept and counted of upstreams, if there are any.
    pub forwarding: Option<Arc<ForwardCache>>,
    /// Where the control plane can be asked for all facts.
    pub events: Events,
    /// `--metrics-prefix`.
    pub prefix: String,
    /// When the program started.
    pub started: Instant,
}

impl ListenerCounters {
    /// The counters of one thread that serves `server` over `transport`.
    pub fn new(server: SocketAddr, transport: &'static str, counters: Arc<Counters>) -> ListenerCounters {
        // As CoreDNS writes it: plain DNS by either transport is one server.
        let scheme = if matches!(transport, "udp" | "tcp") { "dns" } else { transport };
        ListenerCounters { server: format!("{scheme}://{server}"), transport, counters }
    }
}

/// Serves until the program ends.
pub async fn serve(listener: std::net::TcpListener, admin: Arc<Admin>) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
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
            // A client that goes away in the middle is nobody's concern.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
            drop(place);
        });
    }
}

impl Admin {
    async fn respond(&self, request: &Request<Incoming>, from: IpAddr) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
        }
        match request.uri().path() {
            "/health" | "/healthz" | "/livez" => plain(StatusCode::OK, "OK\n".to_owned()),
            "/ready" | "/readyz" => self.ready(request.uri().query().is_some_and(|query| query.contains("verbose"))),
            "/metrics" => match metrics::render(self) {
                Ok(text) => typed(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text),
                Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "metrics could not be written\n".to_owned()),
            },
            "/api/v1/services" => self.services(request.uri().query().unwrap_or(""), from).await,
            "/api/v1/explain" => self.explain(request.uri().query().unwrap_or(""), from),
            other => plain(
                StatusCode::NOT_FOUND,
                format!("no {other}; there are /health, /ready, /metrics, /api/v1/services and /api/v1/explain\n"),
            ),
        }
    }

    /// What `callsign services -o json` prints; `?namespace=NS`, else all. Who is no operator is
    /// told what it may see itself: see [`Viewer`].
    async fn services(&self, query: &str, from: IpAddr) -> Response<Full<Bytes>> {
        let Some(facts) = cluster::facts(&self.events).await else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "the source has ended\n".to_owned());
        };
        let catalog = Catalog::new(self.table.load_full(), facts);
        let namespace = parameter(query, "namespace");
        let viewer = Viewer::of(&catalog.zone, from);
        if let Some(namespace) = namespace.as_deref().filter(|namespace| !catalog.shows_namespace(namespace, &viewer)) {
            return plain(StatusCode::NOT_FOUND, format!("there is no namespace {namespace}\n"));
        }
        json(&services::list_for(&catalog, namespace.as_deref(), &viewer))
    }

    /// What `callsign explain NAME -o json` prints: `?name=NAME&from=NS|IP&type=TYPE`. Who is no operator may
    /// ask for itself only: see [`Viewer`].
    fn explain(&self, query: &str, client: IpAddr) -> Response<Full<Bytes>> {
        let Some(name) = parameter(query, "name") else {
            return plain(StatusCode::BAD_REQUEST, "say which name: /api/v1/explain?name=api&from=web\n".to_owned());
        };
        let zone = self.table.load_full();
        let viewer = Viewer::of(&zone, client);
        let explained = || {
            let name = explain::name_of(&name)?;
            let qtype = explain::type_of(parameter(query, "type").as_deref().unwrap_or("A"))?;
            let who = match &viewer {
                Viewer::Operator => explain::CallerSpec::parse(&zone, parameter(query, "from").as_deref())?,
                Viewer::Caller(namespace) => {
                    explain::CallerSpec::new(namespace.clone(), format!("{client} asks for itself"))
                }
            };
            explain::explain(&zone, &who, &name, qtype, viewer.sight())
        };
        match explained() {
            Ok(explanation) => json(&explanation),
            Err(error) => plain(StatusCode::BAD_REQUEST, format!("{error}\n")),
        }
    }

    /// Ready after the first sync and until shutdown begins.
    fn ready(&self, verbose: bool) -> Response<Full<Bytes>> {
        let status = self.status.status();
        let phase = *self.phase.borrow();
        let mut pending: Vec<String> = status.pending.iter().map(|part| part.as_str().to_owned()).collect();
        if phase != Phase::Serving {
            pending.push("shutting down".to_owned());
        }
        // Saved facts answer as the API's would: whoever serves them is ready, and says so.
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
                    "saved facts are served since {:.1} s: the API has not told {pending}",
                    since.elapsed().as_secs_f64()
                );
            }
            for (part, heard) in &status.heard {
                let _ = writeln!(text, "{}: last heard {:.1} s ago", part.as_str(), heard.elapsed().as_secs_f64());
            }
            for upstream in self.forwarding.iter().flat_map(|kept| kept.upstreams()) {
                let state = match (upstream.looping.load(Relaxed), upstream.down.load(Relaxed)) {
                    (true, _) => "what is asked of it comes back to us: not asked",
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

/// A parameter of a query, decoded; `None` if it is not given, or empty.
fn parameter(query: &str, name: &str) -> Option<String> {
    let mut all = form_urlencoded::parse(query.as_bytes());
    all.find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.into_owned())
}

fn json(value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_string(value) {
        Ok(text) => typed(StatusCode::OK, "application/json", text + "\n"),
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be written\n".to_owned()),
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
