//! DNS queries and replies as HTTP requests and responses (RFC 8484), independent of the HTTP version.

use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{Method, Response, StatusCode, request};
use hyper::body::Bytes;
use tokio::time::timeout;

use super::{CLOSE_TIMEOUT, EncryptedContext, HANDSHAKE_TIMEOUT};
use crate::server::clients::ConnectionSlot;
use crate::server::handler::{MAX_QUERY, NoReply};
use crate::wire::freshness;

/// Path of the URI template `https://SERVER/dns-query{?dns}`.
const PATH: &str = "/dns-query";
/// Media type of DNS messages (RFC 8484 section 6).
const DNS_MESSAGE: &str = "application/dns-message";
/// Maximum size of a request head, in bytes: a query of [`MAX_QUERY`] bytes in base64url, and room for other fields.
pub(super) const HEAD: usize = 16 * 1024;

/// Location of the DNS query in a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuestionSource {
    /// In the URI.
    Message(Vec<u8>),
    /// In the body.
    Body,
}

/// HTTP error response to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status code.
    pub status: StatusCode,
    /// Reason, and how to fix the request.
    pub reason: &'static str,
}

fn refuse(status: StatusCode, reason: &'static str) -> Refusal {
    Refusal { status, reason }
}

/// The body is longer than any DNS query may be.
pub(super) fn too_large() -> Refusal {
    refuse(StatusCode::PAYLOAD_TOO_LARGE, "a DNS query must not exceed 4096 bytes")
}

/// The body did not arrive in time.
fn too_slow() -> Refusal {
    refuse(StatusCode::REQUEST_TIMEOUT, "the request body did not arrive in time")
}

/// The body is incomplete or could not be read.
pub(super) fn broken() -> Refusal {
    refuse(StatusCode::BAD_REQUEST, "the request body is incomplete")
}

/// Locates the DNS query in a request.
///
/// # Errors
/// Returns the error response to send (RFC 8484 section 4.2.1, RFC 9110).
pub fn asked(head: &request::Parts) -> Result<QuestionSource, Refusal> {
    if head.uri.path() != PATH {
        return Err(refuse(StatusCode::NOT_FOUND, "not found; send DNS queries to /dns-query (RFC 8484)"));
    }
    match head.method {
        Method::GET => {
            let parameters = form_urlencoded::parse(head.uri.query().unwrap_or("").as_bytes());
            let Some((_, text)) = parameters.into_iter().find(|(key, _)| key == "dns") else {
                return Err(refuse(StatusCode::BAD_REQUEST, "GET requires a DNS message in base64url as ?dns="));
            };
            if text.len() > BASE64URL_NOPAD.encode_len(MAX_QUERY) {
                return Err(refuse(StatusCode::URI_TOO_LONG, "a DNS query must not exceed 4096 bytes"));
            }
            // RFC 8484 section 6 forbids padding, but padded text decodes to the same message.
            let message = BASE64URL_NOPAD.decode(text.trim_end_matches('=').as_bytes());
            let bad = refuse(StatusCode::BAD_REQUEST, "the dns parameter is not valid base64url");
            message.map(QuestionSource::Message).map_err(|_| bad)
        }
        Method::POST => {
            let said = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
            let said = said.split(';').next().unwrap_or("").trim();
            if !said.eq_ignore_ascii_case(DNS_MESSAGE) {
                let reason = "POST requires the content type application/dns-message";
                return Err(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason));
            }
            if length(head).is_some_and(|length| length > MAX_QUERY as u64) {
                return Err(too_large());
            }
            Ok(QuestionSource::Body)
        }
        _ => Err(refuse(StatusCode::METHOD_NOT_ALLOWED, "the method is not allowed; use GET or POST")),
    }
}

/// Returns the length of the body in bytes, if the head announces it.
pub(super) fn length(head: &request::Parts) -> Option<u64> {
    head.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl EncryptedContext {
    /// Returns the response to a request. It reads `body` if the query is there. The head is dropped before the
    /// first wait, because hundreds of fields take more memory than they took on the wire.
    pub(super) async fn exchange(
        &self,
        slot: &Arc<ConnectionSlot>,
        head: request::Parts,
        body: impl Future<Output = Result<Vec<u8>, Refusal>>,
    ) -> Response<Bytes> {
        let (asked, is_small) = (asked(&head), length(&head).is_some_and(|length| length <= MAX_QUERY as u64));
        drop(head);
        let reply = async {
            let message = match asked {
                Ok(QuestionSource::Message(message)) => message,
                Ok(QuestionSource::Body) => timeout(HANDSHAKE_TIMEOUT, body).await.map_err(|_| too_slow())??,
                Err(refusal) => {
                    // Some clients report a broken connection if the response arrives while they are still sending. A
                    // small body is therefore read first.
                    if is_small {
                        let _ = timeout(CLOSE_TIMEOUT, body).await;
                    }
                    return Err(refusal);
                }
            };
            Ok(self.reply(slot, &message).await?)
        };
        response(reply.await)
    }
}

/// Converts a reply or a refusal into an HTTP response.
fn response(reply: Result<Bytes, Refusal>) -> Response<Bytes> {
    let (status, kind, cached, body) = match reply {
        Ok(reply) => {
            // An answer depends on the client, so shared caches must not store it (RFC 8484 section 5.1).
            let cached = match freshness(&reply) {
                Some(seconds) => format!("private, max-age={seconds}"),
                None => "no-store".to_owned(),
            };
            (StatusCode::OK, DNS_MESSAGE, cached, reply)
        }
        Err(Refusal { status, reason }) => {
            (status, "text/plain; charset=utf-8", "no-store".to_owned(), Bytes::from(format!("{reason}\n")))
        }
    };
    let length = body.len();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CONTENT_LENGTH, length.into());
    headers.extend(HeaderValue::try_from(cached).map(|value| (CACHE_CONTROL, value)));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, POST"));
    }
    response
}

impl From<NoReply> for Refusal {
    fn from(reason: NoReply) -> Refusal {
        match reason {
            NoReply::NotAQuery => refuse(StatusCode::BAD_REQUEST, "the message is not a DNS query"),
            NoReply::Busy => refuse(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many queries in flight, or too many unread replies; retry later",
            ),
        }
    }
}
