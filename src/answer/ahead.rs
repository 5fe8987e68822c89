//! What an answer will look up first, for a transport that has several questions in hand.

use crate::wire::HEADER_LEN;
use crate::zone::Zone;

/// Labels before `svc` in the longest name of a Service: `_port._protocol.service.namespace`.
const MOST: usize = 4;

/// Returns the hash of the Service that [`answer`](super::answer) will look up first for this message; `None` if the
/// message does not name one together with its namespace.
///
/// This is a hint: it may be wrong, and no answer depends on it. To be cheap, it reads only the labels that it needs, and
/// expects them in lower case, as nearly all are.
#[inline(always)]
pub fn first_lookup(zone: &Zone, message: &[u8]) -> Option<u64> {
    let mut labels: [&[u8]; 2] = [&[]; 2];
    let mut at = HEADER_LEN;
    for index in 0..=MOST {
        let label = message.get(at..).and_then(|rest| rest.get(..=usize::from(*rest.first()?)))?;
        match (index, label) {
            // `x.y`, and everything below `svc`.
            (2, [0]) | (2.., b"\x03svc") => {
                return Some(zone.service_hash(zone.label(labels[0]), zone.label(labels[1])));
            }
            (_, [0]) => return None,
            _ => labels = [labels[1], label],
        }
        at += label.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::name_from_text;
    use crate::zone::{Domain, Settings};

    fn zone() -> Zone {
        Zone::unsynced(Arc::new(Settings::new(vec![Domain::new("cluster.local").unwrap()])))
    }

    #[test]
    fn the_hint_is_the_service_that_a_name_is_looked_up_as_first() {
        let zone = zone();
        let cases = [
            ("a full name", "api.web.svc.cluster.local", "api.web"),
            ("an endpoint", "db-0.db.web.svc.cluster.local", "db.web"),
            ("an SRV name", "_http._tcp.api.web.svc.cluster.local", "api.web"),
            ("a short name with its namespace", "api.orders", "api.orders"),
            ("the same with svc", "api.orders.svc", "api.orders"),
            ("a bare name, whose namespace is the caller's", "api", ""),
            ("the name of a namespace", "web.svc.cluster.local", ""),
            ("the root", "", ""),
            ("a name elsewhere", "www.example.com", ""),
            ("a name with too many labels", "a.b.c.d.e.svc.cluster.local", ""),
        ];
        for (case, name, expected) in cases {
            let message = [&[0; HEADER_LEN][..], &name_from_text(name).unwrap(), &[0, 1, 0, 1]].concat();
            let label = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
            let expected = expected.split_once('.').map(|(service, namespace)| {
                zone.service_hash(zone.label(&label(service)), zone.label(&label(namespace)))
            });
            assert_eq!(first_lookup(&zone, &message), expected, "{case}");
        }
    }

    proptest! {
        #[test]
        fn any_octets_have_a_hint_or_none(message in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = first_lookup(&zone(), &message);
        }
    }
}
