//! Ports of Services and EndpointSlices.

use serde::Deserialize;

use super::meta::Text;
use super::{MAX_PORTS, label, quoted};
use crate::wire::{MAX_LABEL, MAX_NAME};
use crate::zone::facts::{PortFact, Protocol};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PortObject {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i64>,
    target_port: Option<Text>,
    app_protocol: Option<String>,
}

fn protocol(text: Option<&str>) -> Result<Protocol, String> {
    match text.unwrap_or("TCP") {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        other => Err(format!("'{}' is not a protocol; use TCP, UDP or SCTP", quoted(other))),
    }
}

/// Converts the ports of an object. Those over the limit are left out, with a note.
///
/// # Errors
/// A port is invalid.
pub(super) fn ports(ports: &Option<Vec<PortObject>>, notes: &mut Vec<String>) -> Result<Vec<PortFact>, String> {
    let count = ports.as_ref().map_or(0, Vec::len);
    let mut facts = Vec::with_capacity(count.min(MAX_PORTS));
    if count > MAX_PORTS {
        notes.push(format!("it has {count} ports; only the first {MAX_PORTS} are used"));
    }
    for port in ports.iter().flatten().take(MAX_PORTS) {
        // A port of a slice may lack a number: it means "all ports" (API documentation of EndpointPort).
        let Some(number) = port.port else { continue };
        let number = u16::try_from(number).map_err(|_| format!("{number} is not a port number"))?;
        let name = port.name.as_deref().unwrap_or_default();
        // The SRV label is the name with a leading underscore, so it is one octet longer.
        let name = if name.is_empty() { Box::default() } else { label("port name", name)? };
        let own = number.to_string();
        facts.push(PortFact {
            name,
            protocol: protocol(port.protocol.as_deref())?,
            number,
            target: port
                .target_port
                .as_ref()
                .map(|target| target.0.as_str())
                .filter(|target| !target.is_empty() && target.len() <= MAX_LABEL && *target != own)
                .map(Into::into),
            app_protocol: port.app_protocol.as_deref().filter(|text| text.len() <= MAX_NAME).map(Into::into),
        });
    }
    Ok(facts)
}
