#![doc = include_str!("../docs/architecture.md")]

pub mod admin;
pub mod answer;
pub mod app;
mod atomic_file;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod exit;
pub mod forward;
mod histogram;
pub mod lifecycle;
pub mod report;
pub mod resolve;
mod sandbox;
pub mod server;
mod tls;
mod watched;
pub mod wire;
pub mod zone;
