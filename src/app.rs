//! The composition root: binds sockets, wires the modules and returns the bound addresses. Only this file imports them
//! all.
//!
//! Two planes share only the pointer to the zone. The control plane (sources, builder, admin) has its own runtime. In
//! the data plane, UDP workers, as many threads for TCP, and one for encrypted transports answer queries. Probes and
//! `--admin` have a thread each.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::runtime::{Builder as RuntimeBuilder, Runtime};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::admin::{self, Admin};
use crate::cluster::publish::{Publisher, SharedStatus};
use crate::cluster::source::{OpenSource, Source, SourceError};
use crate::config::{self, Config, UpstreamLoop};
use crate::lifecycle::{self, LameDuck, Phase, Signals};
use crate::server::encrypted::ListenUrl;
use crate::server::{self, BindError, Counters, Handler, ListenError, Published, Servers};
use crate::zone::{Builder, OwnPod, Zone};
use crate::{exit, forward, watched};

/// Capacity of the publisher's event queue. Beyond it, backpressure reaches the connections to the API.
const EVENTS: usize = 4096;
/// Time allowed for the tasks of the control plane to end at shutdown.
const CONTROL_SHUTDOWN: Duration = Duration::from_millis(500);

/// An error that prevents the server from starting.
#[derive(Debug, Error)]
pub enum StartError {
    /// The source cannot be opened.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A listener cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The admin or health address cannot be bound.
    #[error("{source}; choose another {flag}")]
    Admin {
        /// The flag that sets the address.
        flag: &'static str,
        /// The error.
        source: BindError,
    },
    /// An upstream is this server itself.
    #[error(transparent)]
    Loop(#[from] UpstreamLoop),
    /// Forwarding cannot start: for example, the trust store cannot be read.
    #[error("cannot start forwarding: {0}")]
    Forwarding(std::io::Error),
    /// The operating system could not create a thread or runtime, or report an address.
    #[error("cannot create {what}: {source}")]
    System {
        /// The resource, with its article.
        what: &'static str,
        /// The error of the operating system.
        source: std::io::Error,
    },
}

impl StartError {
    /// Returns the exit status: `CONFIG` if the configuration is wrong, `UNAVAILABLE` if something is missing.
    pub fn exit_status(&self) -> u8 {
        let is_misconfigured = match self {
            StartError::Source(error) => error.is_misconfigured(),
            StartError::Listen(error) => matches!(error, ListenError::Certificate(_)),
            StartError::Loop(_) | StartError::Forwarding(_) => true,
            StartError::Admin { .. } | StartError::System { .. } => false,
        };
        if is_misconfigured { exit::CONFIG } else { exit::UNAVAILABLE }
    }
}

fn system(what: &'static str) -> impl Fn(std::io::Error) -> StartError {
    move |source| StartError::System { what, source }
}

/// A running server.
pub struct Running {
    /// Addresses of the UDP and TCP listeners, with the ports that were bound.
    pub addresses: Vec<SocketAddr>,
    /// Addresses of the encrypted listeners, with the ports that were bound.
    pub encrypted: Vec<ListenUrl>,
    /// Address of the admin plane.
    pub admin: SocketAddr,
    /// Address of health and readiness.
    pub health: SocketAddr,
    /// The published zone.
    pub table: Published,
    phase: watch::Sender<Phase>,
    counters: Vec<Arc<Counters>>,
    /// The runtimes of the control plane, of `--admin` and of `--health`.
    runtimes: [Runtime; 3],
    servers: Servers,
    forwarder: Option<JoinHandle<()>>,
}

/// Starts a server.
///
/// # Errors
/// Everything that can fail before the first query: addresses, sources, files.
pub fn start(config: Config) -> Result<Running, StartError> {
    let started = Instant::now();
    let bound = server::bind(&config.listen)?;
    let (addresses, encrypted) = (bound.plain(), bound.encrypted());
    config::refuse_loops(&config.forwarding, &addresses, &encrypted)?;
    let listen = |flag, address| server::listener(address).map_err(|source| StartError::Admin { flag, source });
    let (admin_listener, health_listener) = (listen("--admin", config.admin)?, listen("--health", config.health)?);
    let admin_address = admin_listener.local_addr().map_err(system("the admin listener"))?;
    let health_address = health_listener.local_addr().map_err(system("the health listener"))?;

    let mut settings = config.settings.clone();
    let own_addresses = config::advertised(&config.advertise, &addresses, &encrypted);
    settings.advertise(&own_addresses);
    if let Some(namespace) = config.own_namespace.filter(|_| config.advertise.is_empty()) {
        settings.own_pod = Some(OwnPod { namespace, addresses: own_addresses });
    }
    let settings = Arc::new(settings);
    let table: Published = Arc::new(ArcSwap::from_pointee(Zone::unsynced(settings.clone())));

    let runtime = |name: &str| {
        let built = RuntimeBuilder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build();
        built.map_err(system("a runtime"))
    };
    // Probes have a thread of their own: neither a large table nor a scrape may make them late.
    let (control, admin_runtime, health_runtime) = (runtime("control")?, runtime("admin")?, runtime("health")?);
    // SIGHUP must not end a server that is still reading its source.
    {
        let _runtime = control.enter();
        control.spawn(lifecycle::on_hangup(watched::wake_all).map_err(system("a signal handler"))?);
    }
    let (events, incoming) = mpsc::channel(EVENTS);
    let status = SharedStatus::default();
    let OpenSource { resources, first, .. } = config.source.follow(control.handle(), &events)?;
    let mut publisher = Publisher::new(Builder::new(settings), table.clone(), status.clone(), resources);
    publisher.limit_namespaces(config.namespace_budget);
    if let Some(path) = config.saved.filter(|_| !matches!(config.source.source, Source::Manifests(_))) {
        publisher.save_to(path);
    }
    for event in first {
        publisher.take(event);
    }
    publisher.publish();
    control.spawn(publisher.run(incoming));

    let forwarding = match config.forwarding.is_on() {
        true => {
            let payload = table.load().settings.udp_payload;
            let started = forward::start(config.forwarding, table.clone(), payload);
            Some(started.map_err(StartError::Forwarding)?)
        }
        false => None,
    };
    let cache = forwarding.as_ref().map(|started| started.forwarder.cache.clone());
    let (forwarder, thread) = forwarding.map(|started| (started.forwarder, started.thread)).unzip();
    let handler = Handler::new(table.clone(), forwarder, config.rate_limit);
    let mut servers = bound.start(&handler).map_err(system("a thread"))?;

    let (phase, seen) = watch::channel(Phase::Serving);
    let counters = servers.listeners.iter().map(|listener| listener.counters.clone()).collect();
    let admin = Admin {
        table: table.clone(),
        status,
        phase: seen,
        listeners: std::mem::take(&mut servers.listeners),
        tcp: servers.clients.clone(),
        encrypted: servers.encrypted.take(),
        forwarding: cache,
        events,
        prefix: config.metrics_prefix,
        started,
        access: config.access,
        stalled: watch::Sender::new(None),
        listing: Arc::new(Semaphore::new(1)),
    };
    let (admin, detector) = (Arc::new(admin), std::mem::take(&mut servers.detector));
    health_runtime.spawn(admin::serve_health(health_listener, admin.clone(), detector));
    admin_runtime.spawn(admin::serve(admin_listener, admin));
    let runtimes = [control, admin_runtime, health_runtime];
    Ok(Running {
        addresses,
        encrypted,
        admin: admin_address,
        health: health_address,
        table,
        phase,
        counters,
        runtimes,
        servers,
        forwarder: thread,
    })
}

impl Running {
    /// Installs the handlers of the signals that end the server.
    ///
    /// # Errors
    /// The signal handlers cannot be installed.
    pub fn signals(&self) -> std::io::Result<Signals> {
        let [control, ..] = &self.runtimes;
        let _runtime = control.enter();
        Signals::install()
    }

    /// Serves until a signal arrives, then shuts down.
    pub fn until_signalled(self, signals: Signals, lame_duck: LameDuck) {
        let [control, ..] = &self.runtimes;
        control.block_on(lifecycle::run_phases(signals, &self.phase, lame_duck, || self.queries()));
        self.stop();
    }

    /// Shuts down: answers the queries that have arrived, and accepts no more.
    pub fn stop(self) {
        self.phase.send_replace(Phase::Draining);
        self.servers.stop();
        // The forwarder's thread ends once every transport has dropped its handle and the queries in flight are done.
        if let Some(thread) = self.forwarder {
            let _ = thread.join();
        }
        for runtime in self.runtimes {
            runtime.shutdown_timeout(CONTROL_SHUTDOWN);
        }
    }

    /// Returns the number of queries that have been answered.
    fn queries(&self) -> u64 {
        self.counters.iter().map(|counters| counters.queries()).sum()
    }
}
