//! `v1` Pod.

use serde::Deserialize;

use super::meta::Meta;
use super::{Object, ParseOptions, address, key_of};
use crate::zone::facts::{Change, PodFact, PodId};

/// `v1` Pod.
#[derive(Debug, Deserialize)]
pub struct PodObject {
    /// See [`Meta`].
    #[serde(default)]
    pub metadata: Option<Meta>,
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    host_network: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<PodIp>>,
}

#[derive(Debug, Deserialize)]
struct PodIp {
    ip: Option<String>,
}

impl Object for PodObject {
    const KIND: &'static str = "Pod";
    type Id = PodId;

    fn id(meta: &Meta) -> Option<PodId> {
        Some(PodId::of(meta.namespace(), meta.name()?))
    }

    fn metadata(&self) -> Option<&Meta> {
        self.metadata.as_ref()
    }

    fn change(&self, meta: &Meta, _: ParseOptions, _: &mut Vec<String>) -> Result<Change, String> {
        let key = key_of(meta)?;
        let pod = PodId::of(&key.namespace, &key.name);
        let status = self.status.as_ref();
        let finished = matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"));
        if finished || meta.is_being_deleted() {
            return Ok(Change::Pod(pod, None));
        }
        let mut addresses = Vec::new();
        for status in status.iter() {
            let listed = status.pod_ips.iter().flatten().filter_map(|ip| ip.ip.as_deref());
            for text in listed.chain(status.pod_ip.as_deref()).filter(|text| !text.is_empty()) {
                let address = address(text)?;
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        let host_network = self.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
        Ok(Change::Pod(pod, Some(PodFact { namespace: key.namespace, addresses, host_network })))
    }

    fn gone(pod: PodId) -> Change {
        Change::Pod(pod, None)
    }
}
