//! Callsign.

pub mod wire;
pub mod zone;
