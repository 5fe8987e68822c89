//! Callsign.

pub mod answer;
pub mod resolve;
pub mod wire;
pub mod zone;
