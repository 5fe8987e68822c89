//! The tests of what users see: names, messages, transports, sources and commands. They are one program, because linking
//! it once is faster than twelve times. `tests/allocation.rs` is apart, since it has an allocator of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::large_stack_frames,
    clippy::print_stdout,
    missing_docs
)]

mod api;
mod command;
mod commands;
mod common;
mod conformance;
mod encrypted;
mod follow;
mod forward;
mod messages;
mod names;
mod publish;
mod replies;
mod transport;
