//! The composition root: binds sockets, wires the modules, returns the bound addresses. Only this file sees them all.
//!
//! Two planes share only the pointer to the zone. The control plane (sources, builder, admin) has a runtime of its own.
//! UDP workers, a thread for TCP and one for encrypted transports answer queries.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::runtime::{Builder as RuntimeBuilder, Runtime};
use tokio::sync::{mpsc, watch};

use crate::admin::{self, Admin, ListenerCounters};
use crate::cluster::kubernetes::Pods;
use crate::cluster::manifests::{ManifestError, ManifestOptions, Manifests};
use crate::cluster::object::ParseOptions;
use crate::cluster::publish::{Publisher, SharedStatus};
use crate::cluster::{Event, Events, Resource, error_chain, kubernetes};
use crate::config::{self, Config, Source};
use crate::forward;
use crate::lifecycle::{self, Phase};
use crate::server::encrypted::{self, ListenUrl, OpenError, Transport};
use crate::server::{BindError, Clients, Handler, Published, TransportCounters, tcp, udp};
use crate::zone::{Builder, Cidr, Zone};

/// Capacity of the publisher's event queue. Beyond it, backpressure reaches the connections to the API.
const EVENTS: usize = 4096;

/// An error that prevents the server from starting.
#[derive(Debug, Error)]
pub enum StartError {
    /// No source is configured.
    #[error("no source; set --manifests PATH or --kubeconfig FILE, or run in a pod with a service account")]
    NoSource,
    /// The manifests cannot be read.
    #[error(transparent)]
    Manifests(#[from] ManifestError),
    /// The kubeconfig or the service account does not load.
    #[error("{what}: {error}")]
    Kubeconfig {
        /// The file, or the service account.
        what: String,
        /// The reason.
        error: String,
    },
    /// An address cannot be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The certificate, its key or the client authorities cannot be used.
    #[error(transparent)]
    Certificate(encrypted::CertificateError),
    /// An upstream is this server itself.
    #[error(
        "upstream {upstream}{file} is this server, listening on {listens}: queries would loop; use --upstream ADDR \
             (in a sidecar, the cluster's DNS) or --upstream none"
    )]
    Loop {
        /// The upstream.
        upstream: String,
        /// ` of FILE`, if a resolv.conf names it; else empty.
        file: String,
        /// The listening address that it reaches.
        listens: SocketAddr,
    },
    /// Forwarding cannot start: for example, the trust store cannot be read.
    #[error("cannot start forwarding: {0}")]
    Forwarding(std::io::Error),
    /// The system provides no thread, runtime or address.
    #[error("system resource not available ({what}): {source}")]
    System {
        /// The resource: `thread`, `runtime` or `address`.
        what: &'static str,
        /// The error of the system.
        source: std::io::Error,
    },
}

impl StartError {
    /// Returns the exit status (sysexits.h): 78 (EX_CONFIG) if the configuration is wrong, 69 (EX_UNAVAILABLE) if a
    /// resource is missing.
    pub fn exit_status(&self) -> u8 {
        match self {
            StartError::Kubeconfig { .. }
            | StartError::Manifests(ManifestError::Syntax { .. })
            | StartError::Certificate(_)
            | StartError::Loop { .. }
            | StartError::Forwarding(_) => 78,
            _ => 69,
        }
    }
}

impl From<OpenError> for StartError {
    fn from(error: OpenError) -> StartError {
        match error {
            OpenError::Files(unfit) => StartError::Certificate(unfit),
            OpenError::Bind(bind) => StartError::Bind(bind),
        }
    }
}

fn system(what: &'static str) -> impl Fn(std::io::Error) -> StartError {
    move |source| StartError::System { what, source }
}

/// A running server.
pub struct Running {
    /// Addresses of the UDP and TCP listeners, with the ports that were bound.
    pub addresses: Vec<SocketAddr>,
    /// Endpoints of the encrypted listeners, with the ports that were bound.
    pub encrypted: Vec<ListenUrl>,
    /// Address of the admin plane.
    pub admin: SocketAddr,
    /// The published zone.
    pub table: Published,
    phase: watch::Sender<Phase>,
    control: Runtime,
    workers: Vec<udp::Workers>,
    tcp: JoinHandle<()>,
    encrypted_thread: Option<JoinHandle<()>>,
    tcp_stop: watch::Sender<bool>,
    forwards: Option<JoinHandle<()>>,
}

/// Starts a server.
///
/// # Errors
/// An address cannot be bound, a source or file cannot be read, or an upstream is this server.
pub fn start(config: Config) -> Result<Running, StartError> {
    let started = Instant::now();
    let mut bound = Vec::new();
    for address in &config.listen {
        bound.push(bind(*address, config.workers)?);
    }
    let addresses: Vec<SocketAddr> = bound.iter().map(|(udp, _)| udp.address()).collect();
    let encrypted = config.encrypted.as_ref().map(encrypted::open).transpose()?;
    let endpoints = encrypted.as_ref().map(encrypted::EncryptedSockets::endpoints).unwrap_or_default();
    let all: Vec<SocketAddr> = addresses.iter().copied().chain(endpoints.iter().map(|bound| bound.address)).collect();
    refuse_loops(&config, &addresses, &endpoints)?;
    let admin_listener = tcp::bind(config.admin)?;
    let admin_address = admin_listener.local_addr().map_err(system("address"))?;

    let mut settings = config.settings.clone();
    settings.advertise(&config::advertised(&config, if addresses.is_empty() { &all } else { &addresses }));
    let settings = Arc::new(settings);
    let table: Published = Arc::new(ArcSwap::from_pointee(Zone::unsynced(settings.clone())));
    let status = SharedStatus::default();

    let control = RuntimeBuilder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(system("runtime"))?;
    let (events, incoming) = mpsc::channel(EVENTS);
    let following = SourceOptions {
        source: &config.source,
        service_cidrs: &config.service_cidrs,
        parse_options: config.parse_options,
        pods: &config.pods,
        self_check: config.self_check,
    };
    let StartedSource { resources, first, .. } = start_source(&following, &control, &events)?;
    let mut publisher = Publisher::new(Builder::new(settings), table.clone(), status.clone(), resources);
    if let Some(path) = config.saved.filter(|_| !matches!(config.source, Source::Manifests(_))) {
        publisher.save_to(path);
    }
    for event in first {
        publisher.take(event);
    }
    publisher.publish();
    control.spawn(publisher.run(incoming));

    let (forwarder, forwards) = match config.forwarding.is_on() {
        true => {
            let payload = table.load().settings.udp_payload;
            let started = forward::start(config.forwarding, table.clone(), payload).map_err(StartError::Forwarding)?;
            (Some(started.forwarder), Some(started.thread))
        }
        false => (None, None),
    };
    let kept = forwarder.as_ref().map(|forwarder| forwarder.cache.clone());
    let handler = Handler::new(table.clone(), forwarder.clone());
    let shared = Arc::new(tcp::StreamContext {
        handler: handler.clone(),
        tally: TransportCounters::default(),
        clients: Clients::new(config.tcp),
    });
    let (tcp_stop, stopping) = watch::channel(false);
    let (mut workers, mut listeners, mut tcp_listeners) = (Vec::new(), Vec::new(), Vec::new());
    for (udp, tcp) in bound {
        let address = udp.address();
        let started = udp.start(&table, forwarder.as_ref()).map_err(system("thread"))?;
        listeners
            .extend(started.counters.iter().map(|counters| ListenerCounters::new(address, "udp", counters.clone())));
        workers.push(started);
        tcp_listeners.push(tcp);
    }
    if let Some(address) = addresses.first() {
        listeners.push(ListenerCounters::new(*address, "tcp", shared.tally.counters.clone()));
        listeners.push(ListenerCounters::new(*address, "tcp", shared.tally.late.clone()));
    }
    let tcp = serve_tcp(tcp_listeners, shared.clone(), stopping.clone()).map_err(system("thread"))?;
    let encrypted = match encrypted {
        Some(bound) => {
            let started =
                bound.start(&handler, config.tcp, stopping, lifecycle::DRAIN_TIMEOUT).map_err(system("thread"))?;
            for (endpoint, tally) in &started.counters {
                for counters in [&tally.counters, &tally.late] {
                    listeners.push(ListenerCounters::new(
                        endpoint.address,
                        endpoint.transport.name(),
                        counters.clone(),
                    ));
                }
            }
            Some(started)
        }
        None => None,
    };

    let (phase, seen) = watch::channel(Phase::Serving);
    let admin = Admin {
        table: table.clone(),
        status,
        phase: seen,
        listeners,
        tcp: shared.clients.clone(),
        encrypted: encrypted.as_ref().map(|started| (started.clients.clone(), started.stats.clone())),
        forwarding: kept,
        events,
        prefix: config.metrics_prefix,
        started,
    };
    control.spawn(admin::serve(admin_listener, Arc::new(admin)));
    Ok(Running {
        addresses,
        encrypted: endpoints,
        admin: admin_address,
        table,
        phase,
        control,
        workers,
        tcp,
        encrypted_thread: encrypted.map(|started| started.thread),
        tcp_stop,
        forwards,
    })
}

/// Rejects upstreams that are this server: their queries would loop forever.
fn refuse_loops(config: &Config, plain: &[SocketAddr], encrypted: &[ListenUrl]) -> Result<(), StartError> {
    // Upstreams are never queried over QUIC, and another server may use TLS on the same port number over TCP.
    let streams = encrypted.iter().filter(|endpoint| matches!(endpoint.transport, Transport::Tls | Transport::Https));
    for server in config.forwarding.servers() {
        let streams = streams.clone().map(|endpoint| &endpoint.address).filter(|_| server.tls.is_some());
        if let Some(listens) = plain.iter().chain(streams).find(|bound| config::reaches(server.socket, **bound)) {
            let file = config.forwarding.file.as_ref().map(|file| format!(" of {}", file.display()));
            let file = file.unwrap_or_default();
            return Err(StartError::Loop { upstream: server.to_string(), file, listens: *listens });
        }
    }
    Ok(())
}

/// Binds UDP and TCP on one address. If the system chooses the port, another program may take it before every socket is
/// bound; then the system chooses again.
fn bind(address: SocketAddr, workers: usize) -> Result<(udp::Bound, std::net::TcpListener), BindError> {
    let mut tries = if address.port() == 0 { 16 } else { 1 };
    loop {
        tries -= 1;
        let bound = udp::bind(address, workers).and_then(|udp| {
            let tcp = tcp::bind(udp.address())?;
            Ok((udp, tcp))
        });
        match bound {
            Err(_) if tries > 0 => {}
            bound => return bound,
        }
    }
}

/// A source, and how to follow it.
pub struct SourceOptions<'c> {
    /// The source.
    pub source: &'c Source,
    /// Blocks from which manifest Services without a clusterIP get addresses.
    pub service_cidrs: &'c [Cidr],
    /// How objects are parsed.
    pub parse_options: ParseOptions,
    /// Which pods are watched.
    pub pods: &'c Pods,
    /// Time between comparisons with the API; 0 disables them.
    pub self_check: Duration,
}

/// A started source.
pub struct StartedSource {
    /// The resources that the source delivers.
    pub resources: Vec<Resource>,
    /// Events that the source delivered at the start.
    pub first: Vec<Event>,
    /// The client of the API, if the source is an API.
    pub client: Option<kube::Client>,
}

/// Starts a source. It sends to `events` until the runtime stops.
///
/// # Errors
/// No source is configured, manifests cannot be read, or a kubeconfig or service account does not load.
pub fn start_source(
    following: &SourceOptions<'_>,
    runtime: &Runtime,
    events: &Events,
) -> Result<StartedSource, StartError> {
    match following.source {
        Source::Unspecified => Err(StartError::NoSource),
        Source::Manifests(path) => {
            let (parse_options, service_cidrs) = (following.parse_options, following.service_cidrs.to_vec());
            let _guard = runtime.enter();
            let (manifests, mut first) =
                Manifests::open(ManifestOptions { path: path.clone(), parse_options, service_cidrs })?;
            first.push(Event::Synced(Resource::Manifests));
            runtime.spawn(manifests.follow(events.clone()));
            Ok(StartedSource { resources: vec![Resource::Manifests], first, client: None })
        }
        Source::Kubeconfig(..) | Source::InCluster => {
            let client = client(runtime, following.source)?;
            let _guard = runtime.enter();
            let resources =
                kubernetes::follow(&client, following.parse_options, following.pods, following.self_check, events);
            Ok(StartedSource { resources, first: Vec::new(), client: Some(client) })
        }
    }
}

/// Returns a client of the source's API, without connecting.
///
/// # Errors
/// The kubeconfig or the service account does not load.
pub fn client(runtime: &Runtime, source: &Source) -> Result<kube::Client, StartError> {
    let (what, loaded) = match source {
        Source::Kubeconfig(path, context) => {
            let what = format!("kubeconfig {}", path.display());
            (what, runtime.block_on(from_kubeconfig(path, context.clone())))
        }
        _ => ("service account".to_owned(), kube::Config::incluster().map_err(|error| error.to_string())),
    };
    let failed = |error: String| StartError::Kubeconfig { what: what.clone(), error };
    let mut loaded = loaded.map_err(failed)?;
    loaded.connect_timeout = Some(Duration::from_secs(5));
    loaded.read_timeout = None;
    // The watcher has its own backoff. A 504 may mean "too large resource version", which a retry does not cure.
    loaded.default_retry = false;
    let _guard = runtime.enter();
    kube::Client::try_from(loaded).map_err(|error| failed(error.to_string()))
}

async fn from_kubeconfig(path: &Path, context: Option<String>) -> Result<kube::Config, String> {
    // KUBECONFIG may name several files; the first to set a value wins. Some of them may be missing.
    let resources: Vec<_> = std::env::split_paths(path).filter(|resource| !resource.as_os_str().is_empty()).collect();
    let there: Vec<_> = resources.iter().filter(|resource| resource.exists()).collect();
    let mut file = kube::config::Kubeconfig::default();
    for resource in if there.is_empty() { resources.iter().collect() } else { there } {
        let next = kube::config::Kubeconfig::read_from(resource).map_err(|error| error_chain(&error))?;
        file = file.merge(next).map_err(|error| error_chain(&error))?;
    }
    let options = kube::config::KubeConfigOptions { context, ..Default::default() };
    kube::Config::from_custom_kubeconfig(file, &options).await.map_err(|error| error_chain(&error))
}

fn serve_tcp(
    listeners: Vec<std::net::TcpListener>,
    shared: Arc<tcp::StreamContext>,
    stopping: watch::Receiver<bool>,
) -> std::io::Result<JoinHandle<()>> {
    let runtime = RuntimeBuilder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("tcp".to_owned()).spawn(move || {
        runtime.block_on(async {
            let serving: Vec<_> = listeners
                .into_iter()
                .map(|listener| tokio::spawn(tcp::serve(listener, shared.clone(), stopping.clone())))
                .collect();
            for listener in serving {
                let _ = listener.await;
            }
            let deadline = Instant::now() + lifecycle::DRAIN_TIMEOUT;
            while shared.clients.open() > 0 && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
    })
}

impl Running {
    /// Serves until a signal arrives, then shuts down in order.
    ///
    /// # Errors
    /// The signal handlers cannot be installed.
    pub fn until_signalled(self, lame_duck: Duration) -> std::io::Result<()> {
        self.control.block_on(lifecycle::run_phases(&self.phase, lame_duck))?;
        self.stop();
        Ok(())
    }

    /// Stops the server: answers the queries that have arrived, and accepts no more.
    pub fn stop(self) {
        self.phase.send_replace(Phase::Draining);
        self.tcp_stop.send_replace(true);
        for workers in self.workers {
            workers.stop();
        }
        let _ = self.tcp.join();
        if let Some(encrypted_thread) = self.encrypted_thread {
            let _ = encrypted_thread.join();
        }
        // The forwarder ends once every transport has dropped its handle and all queries in flight are answered.
        if let Some(forwards) = self.forwards {
            let _ = forwards.join();
        }
        self.control.shutdown_timeout(Duration::from_millis(500));
    }

    /// Turns readiness off; the server continues to answer.
    pub fn begin_lame_duck(&self) {
        self.phase.send_replace(Phase::LameDuck);
    }
}
