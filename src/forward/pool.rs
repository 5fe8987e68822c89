//! A pool of servers for the same names, and the order in which they are queried.

use std::cell::RefCell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::sleep;

use super::reply::Entry;
use super::settings::Address;
use super::upstream::{Server, UpstreamContext, UpstreamError, UpstreamQuery};

/// Time without a reply after which the next server is queried in parallel.
const HEDGE_AFTER: Duration = Duration::from_millis(400);

/// Servers in the order of the configuration.
pub(super) struct Pool {
    servers: RefCell<Rc<[Rc<Server>]>>,
}

impl Pool {
    pub(super) fn new(addresses: &[Address], shared: &Rc<UpstreamContext>) -> Pool {
        let pool = Pool { servers: RefCell::new(Rc::new([])) };
        pool.replace(addresses, shared);
        pool
    }

    /// Replaces the servers. Those that remain in the pool retain their state.
    pub(super) fn replace(&self, addresses: &[Address], shared: &Rc<UpstreamContext>) {
        let known = self.servers();
        let known_server = |address: &Address| known.iter().find(|server| server.address == *address).cloned();
        let servers = addresses
            .iter()
            .map(|address| known_server(address).unwrap_or_else(|| Rc::new(Server::new(address.clone(), shared))));
        self.servers.replace(servers.collect());
    }

    pub(super) fn servers(&self) -> Rc<[Rc<Server>]> {
        self.servers.borrow().clone()
    }

    /// Whether every server is up and free of loops.
    pub(super) fn is_healthy(&self) -> bool {
        self.servers.borrow().iter().all(|server| server.is_up() && !server.stats.looping.load(Relaxed))
    }

    /// Whether every server is down.
    pub(super) fn is_down(&self) -> bool {
        self.servers.borrow().iter().all(|server| !server.is_up())
    }

    /// Queries one server after another until one answers. Servers that are down come last. If one of them is due for a
    /// retry, it also gets the query in the background, so that no client waits for it.
    pub(super) async fn query(&self, query: &UpstreamQuery<'_>) -> Result<Entry, UpstreamError> {
        let servers = self.servers();
        if self.is_healthy() {
            return race(&servers, query).await;
        }
        let (order, resting) = {
            let usable = servers.iter().filter(|server| !server.stats.looping.load(Relaxed));
            let (mut order, resting): (Vec<_>, Vec<_>) = usable.cloned().partition(|server| server.is_up());
            let tried = resting.iter().find(|server| !order.is_empty() && server.is_due_for_retry()).cloned();
            order.extend(resting);
            (order, tried)
        };
        if let Some(server) = resting {
            let (question, key_flags, deadline) = (query.question.to_vec(), query.key_flags, query.deadline);
            tokio::task::spawn_local(async move {
                let _ = server.query(&UpstreamQuery { question: &question, key_flags, deadline }).await;
            });
        }
        race(&order, query).await
    }
}

/// Queries the first server and, if it fails or is slow, the others. The first answer wins.
fn race<'a>(
    servers: &'a [Rc<Server>],
    query: &'a UpstreamQuery<'_>,
) -> Pin<Box<dyn Future<Output = Result<Entry, UpstreamError>> + 'a>> {
    Box::pin(async move {
        let Some((server, rest)) = servers.split_first() else { return Err(UpstreamError::NoServer) };
        let mut first = pin!(server.query(query));
        if rest.is_empty() {
            return first.await;
        }
        tokio::select! {
            biased;
            result = &mut first => match result {
                Ok(entry) => return Ok(entry),
                Err(error) => return race(rest, query).await.map_err(|other| error.or(other)),
            },
            () = sleep(HEDGE_AFTER) => {}
        }
        let mut others = race(rest, query);
        tokio::select! {
            biased;
            result = &mut first => match result {
                Ok(entry) => Ok(entry),
                Err(error) => others.await.map_err(|other| error.or(other)),
            },
            result = &mut others => match result {
                Ok(entry) => {
                    server.missed();
                    Ok(entry)
                }
                Err(other) => first.await.map_err(|error| error.or(other)),
            },
        }
    })
}
