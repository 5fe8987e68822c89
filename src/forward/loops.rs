//! Detection of forwarding loops: a probe for an unguessable random name is sent to each upstream, and its arrival here
//! reveals a loop.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use super::cache::key_flag;
use super::pool::Pool;
use super::upstream::{Server, UpstreamContext, UpstreamError, UpstreamQuery};
use crate::wire::Name;
use crate::zone::{Domain, Zone};

/// Time that a probe has to return.
const PROBE: Duration = Duration::from_secs(5);
/// Interval between probes of an upstream that loops.
const PROBE_AGAIN: Duration = Duration::from_secs(30);
/// Interval between checks of whether the zone has synced.
const SYNC_POLL: Duration = Duration::from_millis(500);
/// The qtype of probes: HINFO, which is practically unused (RFC 8482 section 4.2 uses it only in replies).
const PROBE_TYPE: u16 = 13;

/// The servers of a zone.
pub(super) struct Route {
    pub(super) zone: Domain,
    pub(super) pool: Pool,
    /// Whether they may answer with private addresses: those of a stub zone are expected to.
    pub(super) is_stub: bool,
    /// Whether a CNAME in their replies may lead to a name of the cluster.
    pub(super) into_cluster: bool,
}

/// The routes of stub zones, longest first; then that of the root, which belongs to the upstreams.
pub(super) type Routes = Rc<[Route]>;

/// Sends probes, and recognizes those that arrive here.
pub(super) struct LoopDetector {
    routes: Routes,
    context: Rc<UpstreamContext>,
    /// Names of the probes in flight, and the servers they were sent to.
    probes: RefCell<HashMap<Box<[u8]>, Rc<Server>>>,
}

impl LoopDetector {
    pub(super) fn new(routes: Routes, context: Rc<UpstreamContext>) -> Rc<LoopDetector> {
        Rc::new(LoopDetector { routes, context, probes: RefCell::default() })
    }

    /// Probes every upstream once the zone is synced; before that, a returning probe could be taken for a name of the
    /// cluster. Then probes looping upstreams every [`PROBE_AGAIN`], to notice the end of a loop.
    pub(super) async fn run(self: Rc<Self>, table: Arc<ArcSwap<Zone>>) {
        while !table.load().synced {
            sleep(SYNC_POLL).await;
        }
        self.probe_all();
        loop {
            sleep(PROBE_AGAIN).await;
            for server in self.servers().iter().filter(|server| server.stats.looping.load(Relaxed)) {
                self.probe(server);
            }
        }
    }

    /// Probes every upstream.
    pub(super) fn probe_all(self: &Rc<Self>) {
        for server in self.servers() {
            self.probe(&server);
        }
    }

    fn servers(&self) -> Vec<Rc<Server>> {
        self.routes.iter().flat_map(|route| route.pool.servers().to_vec()).collect()
    }

    /// Sends a server a query for a random name. If the query arrives here, the server forwards our queries back to us.
    pub(super) fn probe(self: &Rc<Self>, server: &Rc<Server>) {
        let mut probes = self.probes.borrow_mut();
        if probes.values().any(|probed| Rc::ptr_eq(probed, server)) {
            return;
        }
        let is_own = |route: &&Route| route.pool.servers().iter().any(|known| Rc::ptr_eq(known, server));
        let Some(Route { zone, .. }) = self.routes.iter().find(is_own) else { return };
        let label = || format!("{:016x}", self.context.random());
        let name: Box<[u8]> = [&[16], label().as_bytes(), &[16], label().as_bytes(), &zone.wire].concat().into();
        probes.insert(name.clone(), server.clone());
        drop(probes);
        let (detector, server) = (self.clone(), server.clone());
        spawn_local(async move {
            let question = [&*name, &PROBE_TYPE.to_be_bytes(), &[0, 1]].concat();
            let query = UpstreamQuery {
                question: &question,
                key_flags: key_flag::CHECKING_DISABLED,
                deadline: Instant::now() + PROBE,
            };
            let result = server.query(&query).await;
            // A probe that came back has already been removed.
            let stayed_away = detector.probes.borrow_mut().remove(&name).is_some();
            if stayed_away
                && matches!(result, Ok(_) | Err(UpstreamError::Refused(_)))
                && server.stats.looping.swap(false, Relaxed)
            {
                tracing::info!(upstream = %server.address, "forwarding loop resolved; upstream is back in use");
            }
        });
    }

    /// Returns whether the query is a probe. If it is, marks the server that it was sent to as looping.
    pub(super) fn catches(&self, name: &Name) -> bool {
        let Some(server) = self.probes.borrow_mut().remove(name.wire()) else { return false };
        if !server.stats.looping.swap(true, Relaxed) {
            tracing::error!(
                upstream = %server.address,
                "forwarding loop: upstream sends our queries back, so it is not used; set another --upstream, or none"
            );
        }
        true
    }
}
