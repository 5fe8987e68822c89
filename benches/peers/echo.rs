//! The floor: a UDP server that returns every datagram unchanged. No name server can cost less.

use std::mem::MaybeUninit;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use libc::{c_uint, iovec, mmsghdr, sockaddr_storage};

const BATCH: usize = 64;
const BUFFER_SIZE: usize = 1600;

/// Echoes datagrams until the process is killed.
pub fn run(address: &str) -> ! {
    let socket = UdpSocket::bind(address).expect("an address that can be bound");
    let queue = 4 << 20;
    let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(queue);
    let _ = socket2::SockRef::from(&socket).set_send_buffer_size(queue);
    let mut buffers = vec![0u8; BATCH * BUFFER_SIZE];
    // SAFETY: all of these are C structures of numbers and pointers, for which zeros are a valid value.
    let (name, header, piece) = unsafe {
        let name: sockaddr_storage = MaybeUninit::zeroed().assume_init();
        let header: mmsghdr = MaybeUninit::zeroed().assume_init();
        let piece: iovec = MaybeUninit::zeroed().assume_init();
        (name, header, piece)
    };
    let (mut names, mut headers, mut pieces) = (vec![name; BATCH], vec![header; BATCH], vec![piece; BATCH]);
    for index in 0..BATCH {
        pieces[index] = iovec { iov_base: buffers[index * BUFFER_SIZE..].as_mut_ptr().cast(), iov_len: BUFFER_SIZE };
        headers[index].msg_hdr.msg_iov = &raw mut pieces[index];
        headers[index].msg_hdr.msg_iovlen = 1;
        headers[index].msg_hdr.msg_name = (&raw mut names[index]).cast();
    }
    let mut used = BATCH;
    loop {
        for index in 0..used {
            pieces[index].iov_len = BUFFER_SIZE;
            headers[index].msg_hdr.msg_namelen = size_of::<sockaddr_storage>() as _;
        }
        let (descriptor, first) = (socket.as_raw_fd(), headers.as_mut_ptr());
        // SAFETY: the headers point to names and pieces, and those to buffers, that live as long as this function.
        let received = unsafe {
            libc::recvmmsg(descriptor, first, BATCH as c_uint, libc::MSG_WAITFORONE as _, std::ptr::null_mut())
        };
        let Ok(received) = usize::try_from(received) else { continue };
        used = received;
        for index in 0..received {
            pieces[index].iov_len = headers[index].msg_len as usize;
        }
        let mut sent = 0;
        while sent < received {
            // SAFETY: as above.
            let more =
                unsafe { libc::sendmmsg(descriptor, headers[sent..].as_mut_ptr(), (received - sent) as c_uint, 0) };
            sent += usize::try_from(more).unwrap_or(1).max(1);
        }
    }
}
