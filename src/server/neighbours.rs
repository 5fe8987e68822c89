//! Replies that find the send buffer full.
//!
//! The buffer fills up with replies to addresses on the same link that do not exist: the kernel holds each for seconds,
//! while it asks for the address's hardware address. Anyone can forge such senders. Replies to clients that are known to
//! be there then leave through a second socket, whose buffer such replies never enter.

use std::collections::HashSet;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::canonical;
use super::mmsg::{self, ReturnPath, Unsent};
use crate::zone::bits;

/// Time for which the kernel's tables are used before they are read again.
const FRESH: Duration = Duration::from_millis(200);
/// Most datagrams of a dump that are read. The kernel's table holds about a thousand neighbours by default.
const MAX_PARTS: usize = 1024;

/// The second way out of a UDP socket.
pub(super) struct Overflow {
    socket: Arc<Socket>,
    neighbours: Option<(Instant, Neighbours)>,
}

impl Overflow {
    /// Sends by this socket, which is bound to the address of the first one.
    pub(super) fn new(socket: Arc<Socket>) -> Overflow {
        Overflow { socket, neighbours: None }
    }

    /// Sends a reply that did not fit into the first socket's buffer, if its client is known to be there.
    ///
    /// # Errors
    /// The reason why it is not sent.
    #[cold]
    pub(super) fn send(&mut self, path: &ReturnPath, reply: &[u8]) -> Result<(), Unsent> {
        let client = path.client().map(canonical).ok_or(Unsent::Other)?;
        if self.neighbours.as_ref().is_none_or(|(read, _)| read.elapsed() > FRESH) {
            // If the tables cannot be read, no client counts as reachable until the next attempt.
            let found = Neighbours::read().unwrap_or_default();
            self.neighbours = Some((Instant::now(), found));
        }
        let is_there = self.neighbours.as_ref().is_some_and(|(_, neighbours)| neighbours.has(client));
        if !is_there {
            return Err(Unsent::Full);
        }
        let mut failed = None;
        mmsg::send(&self.socket, [(path, reply)], |reason, _, _| failed = Some(reason));
        failed.map_or(Ok(()), Err)
    }
}

/// What the kernel knows about the host's links (rtnetlink(7)).
#[derive(Debug, Default)]
struct Neighbours {
    /// Networks on the host's links: an address in them has to be resolved.
    links: Vec<(u128, u8)>,
    /// Addresses whose hardware address is known.
    resolved: HashSet<IpAddr>,
}

// linux/rtnetlink.h, linux/neighbour.h, linux/if_addr.h.
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
/// NUD_INCOMPLETE, NUD_FAILED.
const UNRESOLVED: u16 = 0x01 | 0x20;
/// Length of nlmsghdr, of ndmsg, and of ifaddrmsg.
const HEADER: usize = 16;
const NEIGHBOUR: usize = 12;
const ADDRESS: usize = 8;

impl Neighbours {
    fn read() -> io::Result<Neighbours> {
        let mut found = Neighbours::default();
        dump(RTM_GETADDR, |kind, body| found.take(kind, body))?;
        dump(RTM_GETNEIGH, |kind, body| found.take(kind, body))?;
        Ok(found)
    }

    /// Whether a reply to this address leaves the host without waiting.
    fn has(&self, client: IpAddr) -> bool {
        let address = bits(client);
        let is_on_link = self
            .links
            .iter()
            .any(|(network, prefix)| (address ^ network).checked_shr(128 - u32::from(*prefix)).unwrap_or(0) == 0);
        !self.links.is_empty() && !is_on_link || self.resolved.contains(&client) || client.is_loopback()
    }

    fn take(&mut self, kind: u16, body: &[u8]) {
        match kind {
            RTM_NEWADDR => {
                let (Some([family, prefix, ..]), Some(address)) = (body.first_chunk::<2>(), attribute(body, ADDRESS))
                else {
                    return;
                };
                let prefix = if i32::from(*family) == libc::AF_INET { prefix.saturating_add(96) } else { *prefix };
                self.links.push((bits(address), prefix.min(128)));
            }
            RTM_NEWNEIGH => {
                let state =
                    body.get(8..).and_then(|rest| rest.first_chunk::<2>()).map(|state| u16::from_ne_bytes(*state));
                if let (Some(state), Some(address)) = (state, attribute(body, NEIGHBOUR))
                    && state & UNRESOLVED == 0
                    && state != 0
                {
                    self.resolved.insert(address);
                }
            }
            _ => {}
        }
    }
}

/// The first attribute of a message whose fixed part has this length: IFA_ADDRESS or NDA_DST, an address.
fn attribute(body: &[u8], fixed: usize) -> Option<IpAddr> {
    let attribute = body.get(fixed..)?;
    let length = usize::from(u16::from_ne_bytes(*attribute.first_chunk()?));
    let kind = u16::from_ne_bytes(*attribute.get(2..)?.first_chunk()?);
    let data = attribute.get(4..length)?;
    match (kind, data.len()) {
        (1, 4) => data.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        (1, 16) => data.first_chunk::<16>().map(|octets| IpAddr::from(*octets).to_canonical()),
        _ => None,
    }
}

/// Requests a dump of one of the kernel's tables, and calls `take` with the type and body of each message.
fn dump(request: u16, mut take: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(libc::NETLINK_ROUTE)))?;
    socket.set_read_timeout(Some(FRESH))?;
    let mut message = [0; HEADER + NEIGHBOUR];
    message[..4].copy_from_slice(&((HEADER + NEIGHBOUR) as u32).to_ne_bytes());
    message[4..6].copy_from_slice(&request.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    socket.send(&message)?;
    let mut buffer = vec![0; 32 * 1024];
    for _ in 0..MAX_PARTS {
        let length = (&socket).read(&mut buffer)?;
        let mut rest = buffer.get(..length).unwrap_or(&[]);
        while let Some(header) = rest.first_chunk::<HEADER>() {
            let [l0, l1, l2, l3, k0, k1, ..] = *header;
            let (length, kind) = (u32::from_ne_bytes([l0, l1, l2, l3]) as usize, u16::from_ne_bytes([k0, k1]));
            if kind == NLMSG_ERROR {
                return Err(io::ErrorKind::Unsupported.into());
            }
            let Some(body) = rest.get(HEADER..length).filter(|_| kind != NLMSG_DONE) else { return Ok(()) };
            take(kind, body);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clients_that_are_there_get_replies_by_the_second_way() {
        let link: u128 = bits("10.1.2.3".parse().unwrap());
        let neighbours = Neighbours {
            links: vec![(link, 96 + 24), (bits("fd00::1".parse().unwrap()), 64)],
            resolved: ["10.1.2.9", "fd00::9"].iter().map(|text| text.parse().unwrap()).collect(),
        };
        for (client, expected) in [
            ("10.1.2.9", true),
            ("10.1.2.10", false),
            ("10.1.3.10", true),
            ("fd00::9", true),
            ("fd00::a", false),
            ("2001:db8::1", true),
            ("127.0.0.1", true),
        ] {
            assert_eq!(neighbours.has(client.parse().unwrap()), expected, "{client}");
        }
    }

    #[test]
    fn the_kernel_names_the_links_of_this_host() {
        let neighbours = Neighbours::read().unwrap();
        let loopback = bits("127.0.0.1".parse().unwrap());
        assert!(neighbours.links.contains(&(loopback, 96 + 8)), "{neighbours:?}");
    }
}
