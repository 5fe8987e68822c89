//! DNS questions and answers as HTTP requests and responses (RFC 8484), whichever HTTP carries them.

use std::sync::Arc;

use data_encoding::BASE64URL_NOPAD;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{Method, Response, StatusCode, request};
use hyper::body::Bytes;
use tokio::time::timeout;

use super::{EncryptedContext, HANDSHAKE, LEAVE};
use crate::server::clients::ConnectionSlot;
use crate::server::handler::{NoReply, QUERY};
use crate::wire::freshness;

/// The path of the URI template `https://SERVER/dns-query{?dns}`.
const PATH: &str = "/dns-query";
/// RFC 8484 section 6.
const DNS_MESSAGE: &str = "application/dns-message";
/// Largest head of a request, in octets: a question of [`QUERY`] octets in base64url, and room for other fields.
pub(super) const HEAD: usize = 16 * 1024;

/// Where a request has its question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuestionSource {
    /// In its URI.
    Message(Vec<u8>),
    /// In its body.
    Body,
}

/// Why a request gets no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What HTTP calls it.
    pub status: StatusCode,
    /// What is wrong, and what to do.
    pub reason: &'static str,
}

fn refuse(status: StatusCode, reason: &'static str) -> Refusal {
    Refusal { status, reason }
}

/// The body is longer than any question.
pub(super) fn too_large() -> Refusal {
    refuse(StatusCode::PAYLOAD_TOO_LARGE, "a DNS question has no more than 4096 octets")
}

/// The body did not come in time.
fn too_slow() -> Refusal {
    refuse(StatusCode::REQUEST_TIMEOUT, "the body took too long")
}

/// The body came to nothing.
pub(super) fn broken() -> Refusal {
    refuse(StatusCode::BAD_REQUEST, "the body did not come whole")
}

/// Finds the question of a request.
///
/// # Errors
/// The response that the request gets instead (RFC 8484 section 4.2.1, RFC 9110).
pub fn asked(head: &request::Parts) -> Result<QuestionSource, Refusal> {
    if head.uri.path() != PATH {
        return Err(refuse(StatusCode::NOT_FOUND, "DNS is asked at /dns-query (RFC 8484)"));
    }
    match head.method {
        Method::GET => {
            let parameters = form_urlencoded::parse(head.uri.query().unwrap_or("").as_bytes());
            let Some((_, text)) = parameters.into_iter().find(|(key, _)| key == "dns") else {
                return Err(refuse(StatusCode::BAD_REQUEST, "GET needs ?dns= and a DNS message in base64url"));
            };
            if text.len() > BASE64URL_NOPAD.encode_len(QUERY) {
                return Err(refuse(StatusCode::URI_TOO_LONG, "a DNS question has no more than 4096 octets"));
            }
            // The standard has no padding (section 6); who pads means the same.
            let message = BASE64URL_NOPAD.decode(text.trim_end_matches('=').as_bytes());
            let bad = refuse(StatusCode::BAD_REQUEST, "dns= is no base64url");
            message.map(QuestionSource::Message).map_err(|_| bad)
        }
        Method::POST => {
            let said = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
            let said = said.split(';').next().unwrap_or("").trim();
            if !said.eq_ignore_ascii_case(DNS_MESSAGE) {
                let reason = "the content type of POST has to be application/dns-message";
                return Err(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason));
            }
            if length(head).is_some_and(|length| length > QUERY as u64) {
                return Err(too_large());
            }
            Ok(QuestionSource::Body)
        }
        _ => Err(refuse(StatusCode::METHOD_NOT_ALLOWED, "DNS is asked by GET or POST")),
    }
}

/// Octets of the body, if the head says.
pub(super) fn length(head: &request::Parts) -> Option<u64> {
    head.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl EncryptedContext {
    /// The response to a request with this head, and this body if its question is there. The head is not kept while anything is
    /// waited for: hundreds of fields take more memory than they took on the wire.
    pub(super) async fn exchange(
        &self,
        place: &Arc<ConnectionSlot>,
        head: request::Parts,
        body: impl Future<Output = Result<Vec<u8>, Refusal>>,
    ) -> Response<Bytes> {
        let (asked, is_small) = (asked(&head), length(&head).is_some_and(|length| length <= QUERY as u64));
        drop(head);
        let reply = async {
            let message = match asked {
                Ok(QuestionSource::Message(message)) => message,
                Ok(QuestionSource::Body) => timeout(HANDSHAKE, body).await.map_err(|_| too_slow())??,
                Err(refusal) => {
                    // Some clients that are refused while they are still sending say that the connection is broken. What is
                    // small is read first.
                    if is_small {
                        let _ = timeout(LEAVE, body).await;
                    }
                    return Err(refusal);
                }
            };
            Ok(self.reply(place, &message).await?)
        };
        response(reply.await)
    }
}

/// The response that carries a reply, or says why there is none.
fn response(reply: Result<Bytes, Refusal>) -> Response<Bytes> {
    let (status, kind, cached, body) = match reply {
        Ok(reply) => {
            // What an answer is depends on who asks, so no cache in between may give it to others (RFC 8484 section 5.1).
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
            NoReply::NoQuery => refuse(StatusCode::BAD_REQUEST, "this is no DNS question"),
            NoReply::Busy => refuse(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many questions wait, or too many replies that nobody takes",
            ),
        }
    }
}
