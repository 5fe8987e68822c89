//! Finds UDP workers that are stuck: datagrams wait for them, and they make no progress.

use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::Socket;

use super::Counters;

/// Number of checks in a row without progress after which a worker counts as stuck.
const CHECKS: u32 = 3;

/// The workers that are watched.
#[derive(Default)]
pub struct StallDetector {
    workers: Vec<Watched>,
}

struct Watched {
    name: String,
    socket: Arc<Socket>,
    counters: Arc<Counters>,
    /// Batches at the last check.
    batches: u64,
    /// Number of checks in a row that found datagrams waiting and no new batch.
    idle_checks: u32,
}

impl StallDetector {
    /// Adds a worker: the thread that reads `socket` and is the only writer of `counters`.
    pub(super) fn watch(&mut self, name: String, socket: Arc<Socket>, counters: Arc<Counters>) {
        self.workers.push(Watched { name, socket, counters, batches: 0, idle_checks: 0 });
    }

    /// Checks every worker. Returns a sentence about the first one that is stuck. To be called about once a second.
    pub fn check(&mut self) -> Option<String> {
        let mut stuck = None;
        for worker in &mut self.workers {
            let batches = worker.counters.batches();
            let waits = is_readable(&worker.socket);
            worker.idle_checks = if waits && batches == worker.batches { worker.idle_checks + 1 } else { 0 };
            worker.batches = batches;
            if worker.idle_checks >= CHECKS && stuck.is_none() {
                stuck = Some(format!("{} is stuck: datagrams wait, but it makes no progress", worker.name));
            }
        }
        stuck
    }
}

/// Whether a datagram waits in the receive buffer.
fn is_readable(socket: &Socket) -> bool {
    let mut ready = [PollFd::new(socket, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // After an error nothing is known, and nothing is reported.
    poll(&mut ready, Some(&now)).is_ok_and(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_worker_is_stuck_only_if_datagrams_wait_and_nothing_happens() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let send = || sender.send_to(b"?", receiver.local_addr().unwrap()).unwrap();
        let socket = Arc::new(Socket::from(receiver.try_clone().unwrap()));
        let counters = Arc::new(Counters::default());
        let mut detector = StallDetector::default();
        detector.watch("worker 0".to_owned(), socket, counters.clone());
        let check = |detector: &mut StallDetector| (0..5).filter_map(|_| detector.check()).count();
        assert_eq!(check(&mut detector), 0, "nothing waits");
        send();
        assert_eq!(check(&mut detector), 3, "a datagram waits: stuck from the third check on");
        counters.took(1, std::time::Duration::ZERO);
        assert_eq!(detector.check(), None, "the worker made progress");
        receiver.recv(&mut [0; 16]).unwrap();
        assert_eq!(check(&mut detector), 0, "nothing waits again");
    }
}
