//! Detection of forwarding loops: a probe for an unguessable random name is sent to each upstream, and its arrival here
//! reveals a loop.

use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use super::cache::key_flag;
use super::engine::Engine;
use super::upstream::{Server, UpstreamError, UpstreamQuery};

/// Time that a probe has to return.
const PROBE: Duration = Duration::from_secs(5);
/// Interval between probes of an upstream that loops.
const PROBE_AGAIN: Duration = Duration::from_secs(30);
/// The qtype of probes: HINFO, which is practically unused (RFC 8482 section 4.2 uses it only in replies).
const PROBE_TYPE: u16 = 13;

impl Engine {
    /// Probes every upstream once the zone is synced: before that, a returning probe could be taken for a name of the
    /// cluster. After that it probes looping upstreams every [`PROBE_AGAIN`], to notice when the loop is gone.
    pub(super) async fn detect_loops(self: Rc<Self>) {
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

    /// Sends a server a query for a random name. If that query arrives here, the server forwards our queries back to
    /// us.
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
            let query = UpstreamQuery {
                question: &question,
                key_flags: key_flag::CHECKING_DISABLED,
                deadline: Instant::now() + PROBE,
            };
            let result = server.query(&query).await;
            // A probe that came back has already been removed.
            let stayed_away = engine.probes.borrow_mut().remove(&name).is_some();
            if stayed_away
                && matches!(result, Ok(_) | Err(UpstreamError::Refused(_)))
                && server.stats.looping.swap(false, Relaxed)
            {
                tracing::info!(upstream = %server.address, "forwarding loop is gone; upstream is back in use");
            }
        });
    }
}

/// Records that a probe of this server has arrived here.
pub(super) fn found(server: &Server) {
    if !server.stats.looping.swap(true, Relaxed) {
        tracing::error!(
            upstream = %server.address,
            "forwarding loop: upstream sends our queries back and is not used; set another --upstream, or none"
        );
    }
}
