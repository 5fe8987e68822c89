//! Callsign.

pub mod wire;
