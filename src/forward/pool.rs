//! Several servers that answer for the same names, and which of them is asked when.

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

/// How long one server is waited for before another is asked as well.
const PATIENCE: Duration = Duration::from_millis(400);

/// Servers in the order in which they were named.
pub(super) struct Pool {
    servers: RefCell<Rc<[Rc<Server>]>>,
}

impl Pool {
    pub(super) fn new(addresses: &[Address], shared: &Rc<UpstreamContext>) -> Pool {
        let pool = Pool { servers: RefCell::new(Rc::new([])) };
        pool.replace(addresses, shared);
        pool
    }

    /// Other servers from now on. Those that stay keep what is known of them.
    pub(super) fn replace(&self, addresses: &[Address], shared: &Rc<UpstreamContext>) {
        let known = self.servers();
        let kept = |address: &Address| known.iter().find(|server| server.address == *address).cloned();
        let servers = addresses
            .iter()
            .map(|address| kept(address).unwrap_or_else(|| Rc::new(Server::new(address.clone(), shared))));
        self.servers.replace(servers.collect());
    }

    pub(super) fn servers(&self) -> Rc<[Rc<Server>]> {
        self.servers.borrow().clone()
    }

    /// Whether all of them are asked in their turn.
    pub(super) fn is_well(&self) -> bool {
        self.servers.borrow().iter().all(|server| server.is_up() && !server.stats.looping.load(Relaxed))
    }

    /// Asks one server after the other until one answers. Those that do not reply at present come last; one that has
    /// rested is tried by the way, so that nobody waits for it.
    pub(super) async fn ask(&self, asked: &UpstreamQuery<'_>) -> Result<Entry, UpstreamError> {
        let servers = self.servers();
        if self.is_well() {
            return race(&servers, asked).await;
        }
        let (order, resting) = {
            let usable = servers.iter().filter(|server| !server.stats.looping.load(Relaxed));
            let (mut order, resting): (Vec<_>, Vec<_>) = usable.cloned().partition(|server| server.is_up());
            let tried = resting.iter().find(|server| !order.is_empty() && server.should_be_tried()).cloned();
            order.extend(resting);
            (order, tried)
        };
        if let Some(server) = resting {
            let (question, marks, deadline) = (asked.question.to_vec(), asked.marks, asked.deadline);
            tokio::task::spawn_local(async move {
                let _ = server.ask(&UpstreamQuery { question: &question, marks, deadline }).await;
            });
        }
        race(&order, asked).await
    }
}

/// Asks the first; if it fails, or takes its time, the others as well. The first answer counts.
fn race<'a>(
    servers: &'a [Rc<Server>],
    asked: &'a UpstreamQuery<'_>,
) -> Pin<Box<dyn Future<Output = Result<Entry, UpstreamError>> + 'a>> {
    Box::pin(async move {
        let Some((server, rest)) = servers.split_first() else { return Err(UpstreamError::Nobody) };
        let mut first = pin!(server.ask(asked));
        if rest.is_empty() {
            return first.await;
        }
        tokio::select! {
            biased;
            result = &mut first => match result {
                Ok(entry) => return Ok(entry),
                Err(trouble) => return race(rest, asked).await.map_err(|other| trouble.or(other)),
            },
            () = sleep(PATIENCE) => {}
        }
        let mut others = race(rest, asked);
        tokio::select! {
            biased;
            result = &mut first => match result {
                Ok(entry) => Ok(entry),
                Err(trouble) => others.await.map_err(|other| trouble.or(other)),
            },
            result = &mut others => match result {
                Ok(entry) => {
                    server.missed();
                    Ok(entry)
                }
                Err(other) => first.await.map_err(|trouble| trouble.or(other)),
            },
        }
    })
}
