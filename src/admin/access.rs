//! Who may read what names the cluster has: clients on loopback, where port forwarding arrives, and those that present
//! the token of `--admin-token-file`.

use std::io::Read as _;
use std::net::IpAddr;
use std::path::PathBuf;

use hyper::header::{AUTHORIZATION, HOST};
use hyper::{HeaderMap, Response, StatusCode, http::uri::Authority};
use subtle::ConstantTimeEq as _;
use thiserror::Error;

use super::body::Body;
use super::http::plain;

/// Longest token that is read, in octets.
const MAX_TOKEN: u64 = 4096;

/// The rules of access to the admin address.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// `--admin-host`: names by which clients may address the server, besides `localhost` and IP addresses.
    pub hosts: Vec<String>,
    /// `--admin-token-file`. It is read for each request that needs it, so that a rotated token is valid at once.
    pub token_file: Option<PathBuf>,
}

/// Why a request is denied.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum Denied {
    /// The Host header names another host. A web page could have sent the request, by DNS rebinding.
    #[error("this server is not named {0:?}; use its IP address or localhost, or start it with --admin-host")]
    Host(String),
    /// The client is on another host, and no token is configured.
    #[error("only for clients on this host (kubectl port-forward), unless the server has an --admin-token-file")]
    Remote,
    /// The token is missing or wrong.
    #[error("a valid token is required; send the header 'Authorization: Bearer TOKEN'")]
    Token,
}

impl Denied {
    pub(super) fn response(&self) -> Response<Body> {
        let status = match self {
            Denied::Host(_) => StatusCode::MISDIRECTED_REQUEST,
            Denied::Remote => StatusCode::FORBIDDEN,
            Denied::Token => StatusCode::UNAUTHORIZED,
        };
        plain(status, format!("{self}\n"))
    }
}

impl Access {
    /// Checks whether a client may read the API and the details of readiness.
    pub(super) fn check(&self, headers: &HeaderMap, from: IpAddr) -> Result<(), Denied> {
        self.check_host(headers)?;
        if from.is_loopback() {
            return Ok(());
        }
        let Some(path) = &self.token_file else { return Err(Denied::Remote) };
        let mut expected = Vec::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(MAX_TOKEN).read_to_end(&mut expected));
        let expected = expected.trim_ascii();
        let given = headers.get(AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
        let given = given.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
        let valid = given.is_some_and(|(_, token)| bool::from(token.trim_ascii().ct_eq(expected)));
        if read.is_ok() && !expected.is_empty() && valid { Ok(()) } else { Err(Denied::Token) }
    }

    /// Checks the Host header. A page that a browser loaded from elsewhere cannot set it to an address.
    pub(super) fn check_host(&self, headers: &HeaderMap) -> Result<(), Denied> {
        // Without the header, the client is not a browser.
        let Some(host) = headers.get(HOST) else { return Ok(()) };
        let authority = host.to_str().ok().and_then(|text| text.parse::<Authority>().ok());
        let name = authority.as_ref().map(|authority| authority.host());
        let is_known = name.is_some_and(|name| {
            let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
            let ours = |known: &String| known.eq_ignore_ascii_case(name);
            bare.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost") || self.hosts.iter().any(ours)
        });
        let shown = || String::from_utf8_lossy(host.as_bytes()).chars().take(100).collect();
        if is_known { Ok(()) } else { Err(Denied::Host(shown())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_clients_and_holders_of_the_token_get_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "secret-token\n").unwrap();
        let access = Access { hosts: vec!["dns.example".to_owned()], token_file: Some(path.clone()) };
        let closed = Access::default();
        let (local, remote) = ("127.0.0.1", "192.0.2.1");
        let host = |name: &str| Err(Denied::Host(name.to_owned()));
        type Case<'c> = (&'c str, &'c Access, &'c str, &'c str, Option<&'c str>, Result<(), Denied>);
        let cases: &[Case<'_>] = &[
            ("a local client", &closed, local, "127.0.0.1:9153", None, Ok(())),
            ("a local client over IPv6", &closed, "::1", "[::1]:9153", None, Ok(())),
            ("localhost", &closed, local, "LocalHost:9153", None, Ok(())),
            ("a page by DNS rebinding", &closed, local, "evil.example:9153", None, host("evil.example:9153")),
            (
                "a name that starts as an address",
                &closed,
                local,
                "127.0.0.1.evil.example",
                None,
                host("127.0.0.1.evil.example"),
            ),
            ("a Host that is not a name", &closed, local, "a b", None, host("a b")),
            ("a name that the operator allows", &access, local, "DNS.example", None, Ok(())),
            ("another host", &closed, remote, "10.0.0.1", None, Err(Denied::Remote)),
            (
                "another host with a token, although none is set",
                &closed,
                remote,
                "10.0.0.1",
                Some("Bearer "),
                Err(Denied::Remote),
            ),
            ("no token", &access, remote, "10.0.0.1", None, Err(Denied::Token)),
            ("the token", &access, remote, "10.0.0.1", Some("Bearer secret-token"), Ok(())),
            ("the token, and a lower-case scheme", &access, remote, "10.0.0.1", Some("bearer secret-token"), Ok(())),
            ("part of the token", &access, remote, "10.0.0.1", Some("Bearer secret-toke"), Err(Denied::Token)),
            ("the token and more", &access, remote, "10.0.0.1", Some("Bearer secret-token2"), Err(Denied::Token)),
            (
                "the token by another scheme",
                &access,
                remote,
                "10.0.0.1",
                Some("Basic! secret-token"),
                Err(Denied::Token),
            ),
        ];
        for (case, access, from, host, token, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            if let Some(token) = token {
                headers.insert(AUTHORIZATION, token.parse().unwrap());
            }
            assert_eq!(access.check(&headers, from.parse().unwrap()), *expected, "{case}");
        }
        std::fs::write(&path, "\n").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, "Bearer ".parse().unwrap());
        let from = remote.parse().unwrap();
        assert_eq!(access.check(&headers, from), Err(Denied::Token), "an empty token file admits no client");
    }
}
