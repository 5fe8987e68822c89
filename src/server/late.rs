//! Replies to datagrams that are sent later, when the batch is another: what the forwarder's thread answers with.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libc::{iovec, mmsghdr, sockaddr_storage, socklen_t};
use socket2::Socket;

use super::Counters;
use super::udp::{BATCH, Control, send_all};
use crate::answer::Verdict;
use crate::forward::{Client, Outbox};

/// Octets of replies that were waited for, kept for the next.
const KEPT: usize = 256 * 1024;

/// Who sent a datagram, and the address it was sent to.
pub(super) struct ReturnPath {
    pub(super) name: sockaddr_storage,
    pub(super) name_length: socklen_t,
    pub(super) control: Control,
    pub(super) control_length: usize,
}

/// Replies of one socket that were waited for: the forwarder's thread fills it, and sends what is in it.
pub(super) struct DeferredReplies {
    socket: Arc<Socket>,
    counters: Arc<Counters>,
    parcels: Mutex<ReplyBatch>,
}

#[derive(Default)]
struct ReplyBatch {
    octets: Vec<u8>,
    /// Where each goes, and where it ends in `octets`.
    to: Vec<(ReturnPath, usize)>,
}

/// Sends the reply to one datagram, later.
pub(super) struct ReplySender {
    pub(super) late: Arc<DeferredReplies>,
    pub(super) from: IpAddr,
    pub(super) octets: usize,
    pub(super) way_back: ReturnPath,
}

impl DeferredReplies {
    /// Of one socket. The counters are written by the forwarder's thread alone.
    pub(super) fn new(socket: Arc<Socket>, counters: Arc<Counters>) -> Arc<DeferredReplies> {
        Arc::new(DeferredReplies { socket, counters, parcels: Mutex::default() })
    }
}

impl Client for ReplySender {
    fn send(self: Box<Self>, reply: &[u8], verdict: &Verdict, took: Duration) -> Option<Arc<dyn Outbox>> {
        let ReplySender { late, from, octets, way_back } = *self;
        late.counters.count(from, octets, verdict);
        late.counters.took(1, took);
        let mut parcels = late.parcels.lock().unwrap_or_else(PoisonError::into_inner);
        let first = parcels.to.is_empty();
        parcels.octets.extend_from_slice(reply);
        let end = parcels.octets.len();
        parcels.to.push((way_back, end));
        drop(parcels);
        first.then_some(late as Arc<dyn Outbox>)
    }
}

impl Outbox for DeferredReplies {
    fn flush(&self) {
        let mut parcels = self.parcels.lock().unwrap_or_else(PoisonError::into_inner);
        let ReplyBatch { octets, to } = &mut *parcels;
        let mut start = 0;
        for batch in to.chunks_mut(BATCH) {
            // SAFETY: C structures of numbers and pointers, for which zeros are a valid value.
            let (mut headers, mut pieces): ([mmsghdr; BATCH], [iovec; BATCH]) =
                unsafe { (MaybeUninit::zeroed().assume_init(), MaybeUninit::zeroed().assume_init()) };
            for (((back, end), header), piece) in batch.iter_mut().zip(&mut headers).zip(&mut pieces) {
                let reply = octets.get(start..*end).unwrap_or(&[]);
                start = *end;
                *piece = iovec { iov_base: reply.as_ptr().cast_mut().cast(), iov_len: reply.len() };
                let header = &mut header.msg_hdr;
                header.msg_name = (&raw mut back.name).cast();
                header.msg_namelen = back.name_length;
                header.msg_iov = piece;
                header.msg_iovlen = 1;
                if back.control_length > 0 {
                    header.msg_control = back.control.0.as_mut_ptr().cast();
                    header.msg_controllen = back.control_length as _;
                }
            }
            send_all(&self.socket, &mut headers[..batch.len()], &self.counters);
        }
        to.clear();
        octets.clear();
        octets.shrink_to(KEPT);
    }
}
