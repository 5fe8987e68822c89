//! Replies to datagrams that wait for an upstream, and are therefore sent after their batch.

use std::sync::{Arc, Mutex, PoisonError};

use socket2::Socket;

use super::Counters;
use super::mmsg::{self, ReturnPath, Unsent};
use super::neighbours::Overflow;
use crate::forward::Outbox;

/// Octets of the reply buffer that stay allocated between batches.
const RETAINED: usize = 256 * 1024;

/// Deferred replies of one socket. The forwarder's thread collects them and sends them together.
pub(super) struct DeferredReplies {
    socket: Arc<Socket>,
    /// Counters that only the forwarder's thread writes.
    counters: Arc<Counters>,
    batch: Mutex<ReplyBatch>,
    overflow: Mutex<Overflow>,
}

#[derive(Default)]
struct ReplyBatch {
    octets: Vec<u8>,
    /// The path of each reply, and the end of the reply in `octets`.
    replies: Vec<(ReturnPath, usize)>,
}

impl DeferredReplies {
    pub(super) fn new(socket: Arc<Socket>, second: Arc<Socket>, counters: Arc<Counters>) -> Arc<DeferredReplies> {
        let overflow = Mutex::new(Overflow::new(second));
        Arc::new(DeferredReplies { socket, counters, batch: Mutex::default(), overflow })
    }

    /// Adds a reply. Returns `self` if the reply is the first of its batch, so that the caller schedules a flush.
    pub(super) fn push(self: Arc<Self>, path: ReturnPath, reply: &[u8]) -> Option<Arc<dyn Outbox>> {
        let mut batch = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = batch.replies.is_empty();
        batch.octets.extend_from_slice(reply);
        let end = batch.octets.len();
        batch.replies.push((path, end));
        drop(batch);
        is_first.then_some(self as Arc<dyn Outbox>)
    }
}

impl Outbox for DeferredReplies {
    fn flush(&self) {
        let mut batch = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
        let ReplyBatch { octets, replies } = &mut *batch;
        let mut start = 0;
        let messages = replies.iter().map(|(path, end)| {
            let reply = octets.get(start..*end).unwrap_or(&[]);
            start = *end;
            (path, reply)
        });
        mmsg::send(&self.socket, messages, |reason, path, reply| {
            let mut overflow = self.overflow.lock().unwrap_or_else(PoisonError::into_inner);
            let retried = if reason == Unsent::Full { overflow.send(path, reply) } else { Err(reason) };
            if let Err(reason) = retried {
                self.counters.unsent(reason);
            }
        });
        replies.clear();
        octets.clear();
        octets.shrink_to(RETAINED);
    }
}
