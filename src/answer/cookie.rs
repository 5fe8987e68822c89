//! DNS cookies (RFC 7873): a client that returns the server's cookie has shown that its address is not forged.
//!
//! Server cookies have the format of RFC 9018. The secret is made when the process starts, so a cookie of another server
//! or an earlier process counts as missing: the client gets an answer and a new cookie.

use std::hash::Hasher as _;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use siphasher::sip::SipHasher24;

/// Length of an option with a client and a server cookie, in octets.
pub const COOKIE_LEN: usize = 4 + 8 + 16;
/// Version of the server cookie, and three reserved octets (RFC 9018 section 4).
const VERSION: [u8; 4] = [1, 0, 0, 0];
/// Time for which a server cookie is valid, in seconds, and by how much it may be in the future (RFC 9018 section 4.3).
const VALID: [u32; 2] = [3600, 300];

/// The cookie option of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// The whole option: code, length, client cookie, server cookie.
    pub option: [u8; COOKIE_LEN],
    /// Whether the client has sent a valid server cookie, and so is at its address.
    pub is_valid: bool,
}

/// Returns the reply's cookie for a client that sent `data`: its cookie and perhaps a server cookie.
#[cold]
#[inline(never)]
pub(super) fn reply(secret: &[u8; 16], client: Option<IpAddr>, data: &[u8]) -> Option<Cookie> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as u32);
    at(secret, client?, data, now)
}

fn at(secret: &[u8; 16], client: IpAddr, data: &[u8], now: u32) -> Option<Cookie> {
    let (own, server) = data.split_first_chunk::<8>()?;
    let is_valid = server.first_chunk::<16>().is_some_and(|server| {
        let [_, _, _, _, t0, t1, t2, t3, ..] = *server;
        let time = u32::from_be_bytes([t0, t1, t2, t3]);
        // Serial number arithmetic (RFC 1982), as RFC 9018 asks for.
        let age = now.wrapping_sub(time);
        let is_recent = age <= VALID[0] || age.wrapping_neg() <= VALID[1];
        is_recent && *server == server_cookie(secret, client, own, time) && data.len() == 24
    });
    let mut option = [0; COOKIE_LEN];
    option[..4].copy_from_slice(&[0, 10, 0, 24]);
    option[4..12].copy_from_slice(own);
    option[12..].copy_from_slice(&server_cookie(secret, client, own, now));
    Some(Cookie { option, is_valid })
}

fn server_cookie(secret: &[u8; 16], client: IpAddr, own: &[u8; 8], time: u32) -> [u8; 16] {
    let mut hasher = SipHasher24::new_with_key(secret);
    hasher.write(own);
    hasher.write(&VERSION);
    hasher.write(&time.to_be_bytes());
    match client {
        IpAddr::V4(v4) => hasher.write(&v4.octets()),
        IpAddr::V6(v6) => hasher.write(&v6.octets()),
    }
    let mut cookie = [0; 16];
    cookie[..4].copy_from_slice(&VERSION);
    cookie[4..8].copy_from_slice(&time.to_be_bytes());
    cookie[8..].copy_from_slice(&hasher.finish().to_le_bytes());
    cookie
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_cookies_are_those_of_rfc_9018() {
        // Appendix A.1 and A.3.
        let secret = 0xe5e9_73e5_a6b2_a43f_48e7_dc84_9e37_bfcf_u128.to_be_bytes();
        let own = 0x2464_c4ab_cf10_c957_u64.to_be_bytes();
        let cookie = server_cookie(&secret, "198.51.100.100".parse().unwrap(), &own, 1_559_731_985);
        assert_eq!(u128::from_be_bytes(cookie), 0x0100_0000_5cf7_9f11_1f81_30c3_eee2_9480);
        let own = 0xfc93_fc62_807d_dbad_u64.to_be_bytes();
        let cookie = server_cookie(&secret, "203.0.113.203".parse().unwrap(), &own, 1_559_727_985);
        assert_eq!(cookie[..8], 0x0100_0000_5cf7_8f71_u64.to_be_bytes());
    }

    #[test]
    fn only_a_recent_cookie_of_the_same_client_is_valid() {
        let (secret, own, client) = ([7; 16], [1; 8], "192.0.2.1".parse().unwrap());
        let now = 1_700_000_000;
        let sent = |time| [&own[..], &server_cookie(&secret, client, &own, time)].concat();
        let cases: &[(&str, Vec<u8>, IpAddr, bool)] = &[
            ("just given", sent(now), client, true),
            ("an hour old", sent(now - 3600), client, true),
            ("older", sent(now - 3601), client, false),
            ("from a clock that is ahead", sent(now + 300), client, true),
            ("from the future", sent(now + 301), client, false),
            ("of another address", sent(now), "192.0.2.2".parse().unwrap(), false),
            ("none", own.to_vec(), client, false),
            ("cut short", sent(now)[..20].to_vec(), client, false),
            ("longer", [&sent(now)[..], &[0]].concat(), client, false),
        ];
        for (case, data, client, is_valid) in cases {
            let cookie = at(&secret, *client, data, now).unwrap();
            assert_eq!(cookie.is_valid, *is_valid, "{case}");
            assert_eq!(cookie.option[..12], [&[0, 10, 0, 24][..], &own].concat(), "{case}");
        }
    }
}
