//! Addresses as labels: `10-244-1-3`, `fd00-10-244--55`.
//!
//! Dots and colons become dashes. A label may not end with a dash, so a trailing dash is followed by a zero.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Buffer size: enough for the 39 characters of an IPv6 address, a zero and the length octet.
const MAX: usize = 48;

/// An address as a label, held on the stack.
pub struct Dashed {
    octets: [u8; MAX],
    len: usize,
}

impl Dashed {
    /// The label of an address.
    #[inline]
    pub fn new(address: IpAddr) -> Dashed {
        let mut octets = [0; MAX];
        let mut rest = &mut octets[1..];
        let written = match address {
            IpAddr::V4(v4) => write!(rest, "{v4}"),
            IpAddr::V6(v6) => write!(rest, "{v6}"),
        };
        let mut len = MAX - 1 - rest.len();
        debug_assert!(written.is_ok());
        for octet in &mut octets[1..=len] {
            if matches!(octet, b'.' | b':') {
                *octet = b'-';
            }
        }
        if octets[len] == b'-' {
            len += 1;
            octets[len] = b'0';
        }
        octets[0] = len as u8;
        Dashed { octets, len: len + 1 }
    }

    /// The label with its length octet.
    #[inline(always)]
    pub fn label(&self) -> &[u8] {
        self.octets.get(..self.len).unwrap_or(&[])
    }
}

/// Parses a label (length octet included) as an address, however it is abbreviated.
pub fn parse(label: &[u8]) -> Option<IpAddr> {
    let text = label.get(1..)?;
    let mut spelled = [0u8; 63];
    let spelled = spelled.get_mut(..text.len())?;
    for separator in [b'.', b':'] {
        for (to, from) in spelled.iter_mut().zip(text) {
            *to = if *from == b'-' { separator } else { *from };
        }
        let text = std::str::from_utf8(spelled).ok()?;
        let address = match separator {
            b'.' => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
            _ => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        };
        if address.is_some() {
            return address;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_conversion_to_labels_and_back() {
        for (address, label) in [
            ("10.244.1.3", "10-244-1-3"),
            ("fd00:10:244::55", "fd00-10-244--55"),
            ("fd00::", "fd00--0"),
            ("::1", "--1"),
            ("2001:db8:1:2:3:4:5:6", "2001-db8-1-2-3-4-5-6"),
        ] {
            let address: IpAddr = address.parse().unwrap();
            let dashed = Dashed::new(address);
            assert_eq!(&dashed.label()[1..], label.as_bytes());
            assert_eq!(parse(dashed.label()), Some(address), "{label}");
        }
        assert_eq!(parse(b"\x03web"), None);
        assert_eq!(parse(b"\x0810-0-0-1-"), None);
    }
}
