//! Tests of visible behaviour: names, messages, transports, sources and commands. They are one program, because linking
//! once is faster than linking a dozen times. `tests/allocation.rs` is separate because it replaces the allocator.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::large_stack_frames,
    clippy::print_stdout,
    missing_docs
)]

mod advice;
mod api;
mod attacks;
mod command;
mod commands;
mod common;
mod conformance;
mod deploy;
mod encrypted;
mod follow;
mod forward;
mod manifests;
mod messages;
mod names;
mod publish;
mod readme;
mod replies;
mod tenants;
mod transport;
