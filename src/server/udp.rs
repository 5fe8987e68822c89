//! UDP: one thread a worker, each with its own socket on the same address (SO_REUSEPORT), messages by the batch.
//!
//! A worker loads the table once a batch, so that every answer of it comes from one table. Everything it needs is
//! allocated before the first message.
#![allow(unsafe_code)]

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use libc::{c_int, c_uint, cmsghdr, iovec, mmsghdr, sockaddr_storage, socklen_t};
use socket2::{Domain, Protocol, Socket, Type};

use super::late::{DeferredReplies, ReplySender, ReturnPath};
use super::{BindError, Counters, Published};
use crate::answer::{ForwardRequest, Limit, Scratch, Verdict, answer};
use crate::forward::{ClientQuery, Forwarder, Freshness};
use crate::wire::HEADER_LEN;
use crate::zone::Caller;

/// Messages taken and sent with one system call. Beyond 64 the cost of the call is lost in that of the messages.
pub const BATCH: usize = 64;
/// Largest query taken, in octets: a question of 255 octets with all options that clients send is a third of this. An
/// odd number of cache lines, as for replies: buffers a power of two apart would push each other out of the cache.
const QUERY: usize = 1600;
/// Room for one IPV6_PKTINFO or IP_PKTINFO control message.
const CONTROL: usize = 64;
/// The kernel's queue of a socket in octets, as far as the system allows: what bursts wait in.
const QUEUE: usize = 4 << 20;
/// Wait after an error of the socket itself, so that a broken one never spins.
const PAUSE: Duration = Duration::from_millis(20);

/// Sockets of one address, bound and not yet answering.
pub struct Bound {
    address: SocketAddr,
    sockets: Vec<Socket>,
}

/// Workers of one address.
pub struct Workers {
    stop: Arc<AtomicBool>,
    sockets: Vec<Arc<Socket>>,
    threads: Vec<JoinHandle<()>>,
    /// Counters of each worker, and of the replies that were waited for.
    pub counters: Vec<Arc<Counters>>,
}

/// Binds `workers` sockets to one address; port 0 is chosen once, for all of them.
///
/// # Errors
/// Names the address. An address that another program answers on is an error, even if that program would share it.
pub fn bind(address: SocketAddr, workers: usize) -> Result<Bound, BindError> {
    let failed = |source| BindError { address, transport: "udp", source };
    // Without SO_REUSEPORT: two servers that share an address by mistake would each lose half of the queries.
    let probe = open(address, false).map_err(failed)?;
    let bound = probe.local_addr().map_err(failed)?.as_socket().unwrap_or(address);
    drop(probe);
    let sockets = (0..workers.max(1)).map(|_| open(bound, true)).collect::<io::Result<_>>().map_err(failed)?;
    Ok(Bound { address: bound, sockets })
}

fn open(address: SocketAddr, share: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // `[::]` serves IPv4 too.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    if share {
        socket.set_reuse_port(true)?;
        // As far as the system allows; a smaller queue only loses bursts.
        let _ = socket.set_recv_buffer_size(QUEUE);
        let _ = socket.set_send_buffer_size(QUEUE);
        if address.ip().is_unspecified() {
            set_packet_info(&socket, address.is_ipv6())?;
        }
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Asks for the address that each datagram was sent to, which only a wildcard socket needs to know.
fn set_packet_info(socket: &Socket, v6: bool) -> io::Result<()> {
    let (level, option) =
        if v6 { (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO) } else { (libc::IPPROTO_IP, libc::IP_PKTINFO) };
    let on: c_int = 1;
    // SAFETY: the descriptor is open for as long as `socket` lives, and the option's value is an int of the length told.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), size_of::<c_int>() as socklen_t)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Bound {
    /// The address with its real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts a thread for each socket.
    ///
    /// # Errors
    /// When the system starts no more threads.
    pub fn start(self, table: &Published, forwarder: Option<&Arc<Forwarder>>) -> io::Result<Workers> {
        // Written by the forwarder's thread alone.
        let late = Arc::new(Counters::default());
        let mut workers = Workers {
            stop: Arc::new(AtomicBool::new(false)),
            sockets: self.sockets.into_iter().map(Arc::new).collect(),
            threads: Vec::new(),
            counters: Vec::new(),
        };
        for (index, socket) in workers.sockets.iter().enumerate() {
            let counters = Arc::new(Counters::default());
            let worker = Worker {
                socket: socket.clone(),
                wildcard: self.address.ip().is_unspecified(),
                table: table.clone(),
                counters: counters.clone(),
                stop: workers.stop.clone(),
                scratch: Scratch::new(index as u16),
                forwarder: forwarder.cloned(),
                late: DeferredReplies::new(socket.clone(), late.clone()),
            };
            let thread = std::thread::Builder::new().name(format!("udp-{index}"));
            workers.threads.push(thread.spawn(move || worker.run())?);
            workers.counters.push(counters);
        }
        workers.counters.push(late);
        Ok(workers)
    }
}

impl Workers {
    /// Stops answering once what has arrived is answered, and waits for that.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for socket in &self.sockets {
            // Wakes the worker from its wait. An unconnected socket reports ENOTCONN, and wakes all the same.
            let _ = socket.shutdown(std::net::Shutdown::Read);
        }
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

struct Worker {
    socket: Arc<Socket>,
    wildcard: bool,
    table: Published,
    counters: Arc<Counters>,
    stop: Arc<AtomicBool>,
    scratch: Scratch,
    forwarder: Option<Arc<Forwarder>>,
    late: Arc<DeferredReplies>,
}

impl Worker {
    fn run(mut self) {
        let mut batch = Batch::new(self.wildcard);
        // After the stop what is queued is answered, but not what keeps coming.
        let mut last_rounds = 16;
        loop {
            let stopping = self.stop.load(Ordering::Relaxed);
            let flags = if stopping { libc::MSG_DONTWAIT } else { libc::MSG_WAITFORONE };
            match batch.receive(&self.socket, flags) {
                Ok(received) => {
                    let start = Instant::now();
                    let answered = self.answer(&mut batch, received, start);
                    batch.send(&self.socket, answered, &self.counters);
                    self.counters.took(answered, start.elapsed());
                }
                Err(_) if stopping => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nothing is lost by waiting here: the socket itself is broken, and would be again at once.
                #[allow(clippy::disallowed_methods)]
                Err(_) => std::thread::sleep(PAUSE),
            }
            if stopping {
                last_rounds -= 1;
                if last_rounds == 0 {
                    return;
                }
            }
        }
    }

    /// Answers a batch from one table; returns the number of replies.
    fn answer(&mut self, batch: &mut Batch, received: usize, start: Instant) -> usize {
        let zone = self.table.load();
        let mut replies = 0;
        for index in 0..received {
            let Some((from, length)) = batch.message(index) else { continue };
            let caller = Caller::Address(from);
            let reply = &mut batch.replies[replies * REPLY..(replies + 1) * REPLY];
            let query = &batch.queries[index * QUERY..index * QUERY + length];
            let mut verdict = answer(&zone, caller, query, Limit::Datagram, &mut self.scratch, reply);
            if let Verdict::Forward(ask) = verdict {
                verdict = self.forward(batch, BatchPosition { index, length, from, reply: replies }, ask, start);
            }
            self.counters.count(from, length, &verdict);
            if let Verdict::Reply { len, .. } = verdict {
                batch.address(replies, index, len);
                replies += 1;
            }
        }
        replies
    }

    /// Answers from what upstreams have said, or hands the question over and goes on.
    #[inline(never)]
    fn forward(&self, batch: &mut Batch, at: BatchPosition, ask: ForwardRequest, start: Instant) -> Verdict {
        let Some(forwarder) = &self.forwarder else { return Verdict::Drop };
        let reply = &mut batch.replies[at.reply * REPLY..(at.reply + 1) * REPLY];
        let query = &batch.queries[at.index * QUERY..at.index * QUERY + at.length];
        if let Some((verdict, age)) = forwarder.answer(self.scratch.name(), query, &ask, start, reply) {
            self.counters.cache_hit(age == Freshness::Stale);
            return verdict;
        }
        let query = query.into();
        let (late, way_back) = (self.late.clone(), batch.way_back(at.index));
        let client = ReplySender { late, from: at.from, octets: at.length, way_back };
        forwarder.hand_over(ClientQuery { query, ask, from: at.from, received: start, client: Box::new(client) });
        Verdict::Forward(ask)
    }
}

/// Where a message is in its batch.
#[derive(Clone, Copy)]
struct BatchPosition {
    index: usize,
    length: usize,
    from: IpAddr,
    /// Where its reply goes.
    reply: usize,
}

/// Room for a reply: `--udp-payload` goes no higher than 4,096 octets.
const REPLY: usize = 4096 + 64;

/// Buffers of one worker, allocated once and never moved: the headers point into them.
struct Batch {
    queries: Box<[u8]>,
    replies: Box<[u8]>,
    names: Box<[sockaddr_storage]>,
    controls: Box<[Control]>,
    incoming: Box<[mmsghdr]>,
    outgoing: Box<[mmsghdr]>,
    _pieces: Box<[iovec]>,
    wildcard: bool,
    /// How many headers the last call wrote to: only these have to be set up again.
    used: usize,
}

/// Control messages are read and written as structures: they must be aligned.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control(pub(super) [u8; CONTROL]);

impl Batch {
    fn new(wildcard: bool) -> Batch {
        // SAFETY: all of these are C structures of numbers and pointers, for which zeros are a valid value.
        let (name, header, piece) = unsafe {
            let name: sockaddr_storage = MaybeUninit::zeroed().assume_init();
            let header: mmsghdr = MaybeUninit::zeroed().assume_init();
            let piece: iovec = MaybeUninit::zeroed().assume_init();
            (name, header, piece)
        };
        let mut batch = Batch {
            queries: vec![0; BATCH * QUERY].into(),
            replies: vec![0; BATCH * REPLY].into(),
            names: vec![name; BATCH].into(),
            controls: vec![Control([0; CONTROL]); BATCH].into(),
            incoming: vec![header; BATCH].into(),
            outgoing: vec![header; BATCH].into(),
            _pieces: vec![piece; 2 * BATCH].into(),
            wildcard,
            used: BATCH,
        };
        for index in 0..BATCH {
            batch._pieces[index] =
                iovec { iov_base: batch.queries[index * QUERY..].as_mut_ptr().cast(), iov_len: QUERY };
            batch._pieces[BATCH + index] =
                iovec { iov_base: batch.replies[index * REPLY..].as_mut_ptr().cast(), iov_len: 0 };
        }
        for index in 0..BATCH {
            batch.incoming[index].msg_hdr.msg_iov = &raw mut batch._pieces[index];
            batch.incoming[index].msg_hdr.msg_iovlen = 1;
            batch.incoming[index].msg_hdr.msg_name = (&raw mut batch.names[index]).cast();
            batch.outgoing[index].msg_hdr.msg_iov = &raw mut batch._pieces[BATCH + index];
            batch.outgoing[index].msg_hdr.msg_iovlen = 1;
        }
        batch
    }

    /// Waits for messages as `flags` say; returns their number.
    fn receive(&mut self, socket: &Socket, flags: c_int) -> io::Result<usize> {
        for (header, control) in self.incoming.iter_mut().zip(self.controls.iter_mut()).take(self.used) {
            header.msg_hdr.msg_namelen = size_of::<sockaddr_storage>() as socklen_t;
            if self.wildcard {
                header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
                header.msg_hdr.msg_controllen = CONTROL as _;
            }
        }
        // SAFETY: the headers point to buffers of `self` of the lengths told, which are not moved while it lives and which
        // nobody else touches during the call.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.incoming.as_mut_ptr(),
                BATCH as c_uint,
                flags as _,
                std::ptr::null_mut(),
            )
        };
        // After an error it is not known which.
        self.used = usize::try_from(received).unwrap_or(BATCH);
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// Who sent message `index`, and how long it is; `None` if it gets no reply in any case.
    #[inline]
    fn message(&self, index: usize) -> Option<(IpAddr, usize)> {
        let header = &self.incoming[index];
        let from = address_of(&self.names[index], header.msg_hdr.msg_namelen)?;
        // A reply to port 0 cannot be sent, and would fail its whole batch if it were tried.
        if from.port() == 0 {
            return None;
        }
        let length = (header.msg_len as usize).min(QUERY);
        // What was longer than any query is answered as the header that it is, which has no question: FORMERR.
        let cut = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        Some((super::canonical(from), if cut { HEADER_LEN } else { length }))
    }

    /// Makes reply number `reply`, of `len` octets, the one to message `index`: back to its sender, from the address
    /// that was asked.
    #[inline]
    fn address(&mut self, reply: usize, index: usize, len: usize) {
        let incoming = &self.incoming[index].msg_hdr;
        let (name, namelen) = (incoming.msg_name, incoming.msg_namelen);
        let outgoing = &mut self.outgoing[reply].msg_hdr;
        outgoing.msg_name = name;
        outgoing.msg_namelen = namelen;
        self._pieces[BATCH + reply].iov_len = len;
        if self.wildcard {
            let kept = reply_control(&mut self.controls[index], incoming.msg_controllen);
            outgoing.msg_control =
                if kept == 0 { std::ptr::null_mut() } else { self.controls[index].0.as_mut_ptr().cast() };
            outgoing.msg_controllen = kept as _;
        }
    }

    /// The same for a reply that is sent later, when the batch is another.
    fn way_back(&self, index: usize) -> ReturnPath {
        let incoming = &self.incoming[index].msg_hdr;
        let mut control = self.controls[index];
        let told = if self.wildcard { incoming.msg_controllen } else { 0 };
        let control_length = if told > 0 { reply_control(&mut control, told) } else { 0 };
        ReturnPath { name: self.names[index], name_length: incoming.msg_namelen, control, control_length }
    }

    /// Sends the first `count` replies.
    fn send(&mut self, socket: &Socket, count: usize, counters: &Counters) {
        send_all(socket, &mut self.outgoing[..count], counters);
    }
}

/// Sends messages whose headers point to what is in place. One that cannot be sent is stepped over: it must not cost the
/// others theirs.
pub(super) fn send_all(socket: &Socket, mut rest: &mut [mmsghdr], counters: &Counters) {
    while !rest.is_empty() {
        // SAFETY: the callers' headers point to names, control messages and replies of the lengths told, which live and
        // stay where they are until the call returns.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as c_uint, 0) };
        let done = match usize::try_from(sent) {
            Ok(sent @ 1..) => sent,
            _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => 0,
            _ => {
                counters.unsent();
                1
            }
        };
        rest = rest.get_mut(done..).unwrap_or_default();
    }
}

/// Turns the control message that told where a datagram went into the one that says where the reply comes from, and
/// returns its length. The interface is kept only for link-local addresses: elsewhere routing decides.
fn reply_control(control: &mut Control, length: usize) -> usize {
    // SAFETY: the buffer is aligned and as long as the header that is read, whose numbers may have any value.
    let header: cmsghdr = unsafe { std::ptr::read(control.0.as_ptr().cast()) };
    let told = header.cmsg_len as usize;
    let start = mem::size_of::<cmsghdr>();
    if length < start || told < start || told > CONTROL {
        return 0;
    }
    match (header.cmsg_level, header.cmsg_type) {
        // struct in6_pktinfo: the address, then the interface.
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            let link_local = control.0[start] == 0xfe && control.0[start + 1] & 0xc0 == 0x80;
            if !link_local {
                control.0[start + 16..start + 20].fill(0);
            }
            // SAFETY: a computation on a length.
            unsafe { libc::CMSG_SPACE(20) as usize }
        }
        // struct in_pktinfo: the interface, the local address, the destination.
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            control.0[start..start + 4].fill(0);
            // SAFETY: a computation on a length.
            unsafe { libc::CMSG_SPACE(12) as usize }
        }
        _ => 0,
    }
}

#[inline]
fn address_of(name: &sockaddr_storage, length: socklen_t) -> Option<SocketAddr> {
    match c_int::from(name.ss_family) {
        libc::AF_INET if length as usize >= size_of::<libc::sockaddr_in>() => {
            // SAFETY: the family and the length say that this is what the kernel wrote; the storage is aligned for it.
            let v4: &libc::sockaddr_in = unsafe { &*std::ptr::from_ref(name).cast() };
            let address = Ipv4Addr::from_bits(u32::from_be(v4.sin_addr.s_addr));
            Some(SocketAddrV4::new(address, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 if length as usize >= size_of::<libc::sockaddr_in6>() => {
            // SAFETY: as above.
            let v6: &libc::sockaddr_in6 = unsafe { &*std::ptr::from_ref(name).cast() };
            let address = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(address, u16::from_be(v6.sin6_port), 0, 0).into())
        }
        _ => None,
    }
}
