//! Upstreams that ask us back: found by a question that nobody else can know of, which comes to us.

use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use super::cache::mark;
use super::engine::Engine;
use super::upstream::{Server, UpstreamError, UpstreamQuery};

/// Time for a probe of an upstream to come back to us, and between two of one that looped.
const PROBE: Duration = Duration::from_secs(5);
const PROBE_AGAIN: Duration = Duration::from_secs(30);
/// The type that probes ask for: HINFO, which nobody has (RFC 8482 section 4.2 gives it a use in replies).
const PROBE_TYPE: u16 = 13;

impl Engine {
    /// Once the table is there, which could take a probe for one of its names, every upstream is probed; then those that
    /// loop, from time to time, in case they no longer do.
    pub(super) async fn look_for_loops(self: Rc<Self>) {
        while !self.table.load().synced {
            sleep(Duration::from_millis(500)).await;
        }
        self.clone().probe_all();
        loop {
            sleep(PROBE_AGAIN).await;
            for server in self.routes.iter().flat_map(|(_, pool)| pool.servers().to_vec()) {
                if server.stats.looping.load(Relaxed) {
                    self.probe(&server);
                }
            }
        }
    }

    pub(super) fn probe_all(self: Rc<Self>) {
        for server in self.routes.iter().flat_map(|(_, pool)| pool.servers().to_vec()) {
            self.probe(&server);
        }
    }

    /// Asks a server for a name that nobody else can know. If that question reaches us, what we ask of it comes back.
    pub(super) fn probe(self: &Rc<Self>, server: &Rc<Server>) {
        let mut probes = self.probes.borrow_mut();
        if probes.values().any(|probed| Rc::ptr_eq(probed, server)) {
            return;
        }
        let zone = self.routes.iter().find(|(_, pool)| pool.servers().iter().any(|known| Rc::ptr_eq(known, server)));
        let Some((zone, _)) = zone else { return };
        let label = || format!("{:016x}", self.shared.random());
        let name: Box<[u8]> = [&[16], label().as_bytes(), &[16], label().as_bytes(), &zone.wire].concat().into();
        probes.insert(name.clone(), server.clone());
        drop(probes);
        let (engine, server) = (self.clone(), server.clone());
        spawn_local(async move {
            let question = [&*name, &PROBE_TYPE.to_be_bytes(), &[0, 1]].concat();
            let asked =
                UpstreamQuery { question: &question, marks: mark::CHECKING_DISABLED, deadline: Instant::now() + PROBE };
            let result = server.ask(&asked).await;
            // Taken out by then if it has come back.
            let stayed_away = engine.probes.borrow_mut().remove(&name).is_some();
            if stayed_away
                && matches!(result, Ok(_) | Err(UpstreamError::Refused(_)))
                && server.stats.looping.swap(false, Relaxed)
            {
                tracing::info!(upstream = %server.address, "upstream no longer asks us back");
            }
        });
    }
}

/// What was asked of this server has come to us.
pub(super) fn found(server: &Server) {
    if !server.stats.looping.swap(true, Relaxed) {
        tracing::error!(
            upstream = %server.address,
            "what is asked of this upstream comes back: it is not asked any more. Name another with --upstream, or none"
        );
    }
}
