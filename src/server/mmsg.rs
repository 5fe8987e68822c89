//! Batched datagrams, with recvmmsg(2) and sendmmsg(2).
//!
//! # Design
//! All of the program's `unsafe` code but a prefetch is in this file, behind [`Batch`], [`ReturnPath`], [`send`] and
//! [`set_packet_info`]. The standard library, socket2 and rustix do not offer batched calls with control messages. The
//! batches of quinn-udp (GRO, GSO) need many datagrams from one peer, but a DNS server receives single datagrams from
//! many peers.
//!
//! Message headers live on the stack for one system call, and their pointers are set right before it. From then until
//! the call returns, nothing else mutably borrows the buffers, and no pointer is used after the call. The code is
//! therefore sound under Stacked Borrows, whatever callers do with the buffers between calls. Miri cannot check this,
//! because it does not support the two calls.
#![allow(unsafe_code)]

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

use libc::{c_int, c_uint, cmsghdr, iovec, mmsghdr, sockaddr_storage, socklen_t};
use socket2::Socket;

use crate::wire::HEADER_LEN;

/// Maximum number of datagrams per system call. Beyond 64, the cost of the call is negligible next to that of the
/// datagrams.
pub(super) const BATCH: usize = 64;
/// Minimum number of datagrams that a call prepares for. Preparing headers costs time even if one datagram arrives.
const FEWEST: usize = 4;
/// Largest query that is received whole, in octets: three times a question of 255 octets with every option that clients
/// send. Buffers that are a power of two apart would evict each other from the cache, so this is an odd number of cache
/// lines.
const QUERY: usize = 1600;
/// Largest reply in octets: `--udp-payload` is at most 4,096. A whole number of [`LINE`]s.
const REPLY: usize = 4096;
/// A cache line in octets. Each reply starts in one of its own.
const LINE: usize = 64;
/// Room for one IPV6_PKTINFO or IP_PKTINFO control message in octets.
const CONTROL: usize = 64;

/// A control message. It is aligned because the kernel reads and writes it as a structure.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// The return path of a reply: the client's address, and the local address that received the query.
#[derive(Clone, Copy)]
pub(super) struct ReturnPath {
    name: sockaddr_storage,
    name_length: socklen_t,
    /// Length of the control message in `control`, in octets; 0 if there is none.
    control_length: usize,
    control: Control,
}

/// A received datagram that may get a reply.
pub(super) struct Datagram<'b> {
    /// Address of the client.
    pub(super) from: SocketAddr,
    /// Return path of the reply.
    pub(super) return_path: &'b ReturnPath,
    /// The message.
    pub(super) query: &'b [u8],
    /// Buffer for the reply.
    pub(super) reply: &'b mut [u8],
}

/// The buffers of one UDP worker, allocated once.
pub(super) struct Batch {
    queries: Box<[[u8; QUERY]]>,
    /// The replies, one after the other. There is room for the largest ones, but nearly all are short, and then they
    /// share a few pages of memory.
    replies: Box<[u8]>,
    /// Number of octets of `replies` that are in use.
    used: usize,
    paths: Box<[ReturnPath]>,
    /// Length of each received query, in octets.
    lengths: [usize; BATCH],
    /// For each reply, the index of the datagram that it answers, its offset in `replies` and its length.
    answered: [(usize, usize, usize); BATCH],
    /// Number of replies.
    count: usize,
    /// Whether the socket is bound to a wildcard address, so that replies have to set their source address.
    wildcard: bool,
    /// Number of datagrams that the next call prepares for: twice as many as the last call received.
    prepared: usize,
}

impl Batch {
    /// Allocates the buffers for a socket. `wildcard` says whether it is bound to an unspecified address.
    pub(super) fn new(wildcard: bool) -> Batch {
        Batch {
            queries: vec![[0; QUERY]; BATCH].into(),
            replies: vec![0; BATCH * REPLY].into(),
            used: 0,
            paths: vec![ReturnPath::empty(); BATCH].into(),
            lengths: [0; BATCH],
            answered: [(0, 0, 0); BATCH],
            count: 0,
            wildcard,
            prepared: FEWEST,
        }
    }

    /// Receives the datagrams that have arrived; with `wait`, waits for the first one. Discards the previous batch.
    /// Returns the number of datagrams.
    ///
    /// # Errors
    /// The error of the socket; `WouldBlock` if nothing has arrived and `wait` is not set.
    pub(super) fn receive(&mut self, socket: &Socket, wait: bool) -> io::Result<usize> {
        (self.count, self.used) = (0, 0);
        if !wait {
            // The last batches of a worker: as many datagrams as possible.
            self.prepared = BATCH;
        }
        let mut headers = [const { MaybeUninit::<mmsghdr>::uninit() }; BATCH];
        let mut pieces = [const { MaybeUninit::<iovec>::uninit() }; BATCH];
        let buffers = self.queries.iter_mut().zip(self.paths.iter_mut());
        let slots = headers.iter_mut().zip(pieces.iter_mut()).zip(buffers).take(self.prepared);
        for ((header, piece), (query, path)) in slots {
            let piece = piece.write(iovec { iov_base: query.as_mut_ptr().cast(), iov_len: QUERY });
            let header = &mut header.write(zeroed_header()).msg_hdr;
            header.msg_name = (&raw mut path.name).cast();
            header.msg_namelen = size_of::<sockaddr_storage>() as socklen_t;
            header.msg_iov = piece;
            header.msg_iovlen = 1;
            if self.wildcard {
                header.msg_control = path.control.0.as_mut_ptr().cast();
                header.msg_controllen = CONTROL as _;
            }
        }
        let flags = if wait { libc::MSG_WAITFORONE } else { libc::MSG_DONTWAIT };
        // SAFETY: the first `prepared` headers are initialized. Each points to an initialized piece, and headers and
        // pieces point to buffers of `self` with the given lengths. Nothing else borrows these until the call returns.
        // The descriptor is open for as long as `socket` is borrowed.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr().cast(),
                self.prepared as c_uint,
                flags as _,
                std::ptr::null_mut(),
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        for (index, header) in headers.iter().enumerate().take(received.min(self.prepared)) {
            // SAFETY: the first `prepared` headers were initialized above.
            let header = unsafe { header.assume_init_ref() };
            let path = &mut self.paths[index];
            path.name_length = header.msg_hdr.msg_namelen;
            path.control_length = if self.wildcard { header.msg_hdr.msg_controllen as _ } else { 0 };
            // A truncated datagram is longer than any query. Its DNS header alone has no question and so gets FORMERR.
            let is_cut = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            self.lengths[index] = if is_cut { HEADER_LEN } else { (header.msg_len as usize).min(QUERY) };
        }
        self.prepared = (2 * received).clamp(FEWEST, BATCH);
        Ok(received)
    }

    /// Iterates over received messages `from..to`.
    pub(super) fn messages(&self, from: usize, to: usize) -> impl Iterator<Item = &[u8]> {
        self.queries[from..to].iter().zip(&self.lengths[from..to]).map(|(query, length)| &query[..*length])
    }

    /// Returns a received datagram with the buffer for its reply; `None` if a reply cannot be sent.
    #[inline]
    pub(super) fn datagram(&mut self, index: usize) -> Option<Datagram<'_>> {
        let return_path = &self.paths[index];
        let from = return_path.client()?;
        // A reply to port 0 cannot be sent, and would interrupt the sending of its batch.
        if from.port() == 0 {
            return None;
        }
        let query = &self.queries[index][..self.lengths[index]];
        Some(Datagram { from, return_path, query, reply: &mut self.replies[self.used..][..REPLY] })
    }

    /// Adds the reply to datagram `index`: the first `length` octets of the buffer from [`datagram`](Self::datagram).
    #[inline]
    pub(super) fn reply(&mut self, index: usize, length: usize) {
        self.paths[index].turn_around();
        self.answered[self.count] = (index, self.used, length);
        self.count += 1;
        self.used += length.next_multiple_of(LINE);
    }

    /// Sends the replies, and calls `unsent` for each that could not be sent. Returns their number.
    pub(super) fn send(&mut self, socket: &Socket, unsent: impl FnMut(Unsent, &ReturnPath, &[u8])) -> usize {
        let answered = self.answered[..self.count].iter();
        let replies = answered.map(|&(index, start, length)| (&self.paths[index], &self.replies[start..][..length]));
        send(socket, replies, unsent);
        self.count
    }
}

/// The reason why a reply was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsent {
    /// The send buffer is full: the network is slower than the server, or neighbours do not respond.
    Full,
    /// There is no way to the client.
    Unreachable,
    /// Any other error.
    Other,
}

impl Unsent {
    fn of(error: &io::Error) -> Unsent {
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => Unsent::Full,
            Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN | libc::ENETDOWN) => Unsent::Unreachable,
            _ => Unsent::Other,
        }
    }
}

/// Sends each message along its path. Calls `unsent` for each one that cannot be sent, and continues with the others.
/// It never waits for the send buffer: replies to clients that do not exist would fill it, and stop the worker.
pub(super) fn send<'m>(
    socket: &Socket,
    messages: impl IntoIterator<Item = (&'m ReturnPath, &'m [u8])>,
    mut unsent: impl FnMut(Unsent, &ReturnPath, &[u8]),
) {
    let mut messages = messages.into_iter();
    loop {
        let mut headers = [const { MaybeUninit::<mmsghdr>::uninit() }; BATCH];
        let mut pieces = [const { MaybeUninit::<iovec>::uninit() }; BATCH];
        let mut prepared = [const { MaybeUninit::<(&ReturnPath, &[u8])>::uninit() }; BATCH];
        let mut count = 0;
        let slots = headers.iter_mut().zip(pieces.iter_mut()).zip(prepared.iter_mut());
        for (((header, piece), slot), (path, message)) in slots.zip(messages.by_ref()) {
            slot.write((path, message));
            let piece = piece.write(iovec { iov_base: message.as_ptr().cast_mut().cast(), iov_len: message.len() });
            let header = &mut header.write(zeroed_header()).msg_hdr;
            header.msg_name = (&raw const path.name).cast_mut().cast();
            header.msg_namelen = path.name_length;
            header.msg_iov = piece;
            header.msg_iovlen = 1;
            if path.control_length > 0 {
                header.msg_control = path.control.0.as_ptr().cast_mut().cast();
                header.msg_controllen = path.control_length as _;
            }
            count += 1;
        }
        if count == 0 {
            return;
        }
        let mut start = 0;
        while start < count {
            // SAFETY: headers `start..count` are initialized and point to initialized pieces. Headers and pieces point
            // to paths and messages with the given lengths, which are borrowed for 'm. sendmmsg writes only `msg_len`
            // of the headers, so pointers from shared borrows suffice. The descriptor is open for as long as `socket`
            // is borrowed.
            let sent = unsafe {
                let first: *mut mmsghdr = headers.as_mut_ptr().cast();
                libc::sendmmsg(socket.as_raw_fd(), first.add(start), (count - start) as c_uint, libc::MSG_DONTWAIT as _)
            };
            start += match usize::try_from(sent) {
                Ok(sent @ 1..) => sent,
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => 0,
                    error => {
                        // SAFETY: the first `count` entries are initialized, and `start` is less than that.
                        let (path, message) = unsafe { prepared[start].assume_init() };
                        unsent(Unsent::of(&error), path, message);
                        1
                    }
                },
            };
        }
        if count < BATCH {
            return;
        }
    }
}

/// Requests a control message with the local address that each datagram was sent to. A wildcard socket needs it to
/// reply from that address.
///
/// # Errors
/// The error of setsockopt(2).
pub(super) fn set_packet_info(socket: &Socket, v6: bool) -> io::Result<()> {
    let (level, option) =
        if v6 { (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO) } else { (libc::IPPROTO_IP, libc::IP_PKTINFO) };
    let on: c_int = 1;
    // SAFETY: the descriptor is open for as long as `socket` is borrowed, and the value is an int of the given length.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), size_of::<c_int>() as socklen_t)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[inline(always)]
fn zeroed_header() -> mmsghdr {
    // SAFETY: a C structure of numbers and pointers, for which zeros are a valid value.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

impl ReturnPath {
    fn empty() -> ReturnPath {
        // SAFETY: a C structure of numbers, for which zeros are a valid value.
        let name = unsafe { MaybeUninit::<sockaddr_storage>::zeroed().assume_init() };
        ReturnPath { name, name_length: 0, control_length: 0, control: Control([0; CONTROL]) }
    }

    /// The client's address.
    #[inline]
    pub(super) fn client(&self) -> Option<SocketAddr> {
        match c_int::from(self.name.ss_family) {
            libc::AF_INET if self.name_length as usize >= size_of::<libc::sockaddr_in>() => {
                // SAFETY: the family and the length show that the kernel wrote this structure. The storage is aligned
                // for it, and all its octets are initialized.
                let v4: &libc::sockaddr_in = unsafe { &*std::ptr::from_ref(&self.name).cast() };
                let address = Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr));
                Some(SocketAddrV4::new(address, u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 if self.name_length as usize >= size_of::<libc::sockaddr_in6>() => {
                // SAFETY: as above.
                let v6: &libc::sockaddr_in6 = unsafe { &*std::ptr::from_ref(&self.name).cast() };
                let address = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                Some(SocketAddrV6::new(address, u16::from_be(v6.sin6_port), 0, 0).into())
            }
            _ => None,
        }
    }

    /// Returns a copy for a reply that is sent after its batch.
    pub(super) fn turned_around(&self) -> ReturnPath {
        let mut path = *self;
        path.turn_around();
        path
    }

    /// Turns the received control message, which names the datagram's local address, into one that sends the reply from
    /// that address. The interface is retained only for link-local addresses; otherwise routing chooses it.
    fn turn_around(&mut self) {
        if self.control_length == 0 {
            return;
        }
        let length = mem::take(&mut self.control_length);
        let octets = &mut self.control.0;
        // SAFETY: the buffer is aligned and longer than the structure, whose numbers may have any value.
        let header: cmsghdr = unsafe { std::ptr::read(octets.as_ptr().cast()) };
        let start = size_of::<cmsghdr>();
        if length < start || !(start..=CONTROL).contains(&(header.cmsg_len as usize)) {
            return;
        }
        self.control_length = match (header.cmsg_level, header.cmsg_type) {
            // struct in6_pktinfo: the address, then the interface.
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let is_link_local = octets[start] == 0xfe && octets[start + 1] & 0xc0 == 0x80;
                if !is_link_local {
                    octets[start + 16..start + 20].fill(0);
                }
                // SAFETY: a computation on a length.
                unsafe { libc::CMSG_SPACE(20) as usize }
            }
            // struct in_pktinfo: the interface, the local address, the destination.
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                octets[start..start + 4].fill(0);
                // SAFETY: as above.
                unsafe { libc::CMSG_SPACE(12) as usize }
            }
            _ => 0,
        };
    }
}
