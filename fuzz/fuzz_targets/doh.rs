//! DNS over HTTPS requests: each yields a query or a refusal, never a panic, and a query never exceeds its limit.
#![no_main]

use callsign::server::encrypted::http::{QuestionSource, asked};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8], &[u8])| {
    let (method, path, kind) = input;
    let method = ["GET", "POST", "HEAD", "PUT"][usize::from(method) % 4];
    // Half of the inputs have the right path.
    let path = if path.first().is_some_and(|octet| octet & 1 == 1) { [b"/dns-query?dns=", path].concat() } else { path.to_vec() };
    let Ok(uri) = http::Uri::try_from(path) else { return };
    let request = http::Request::builder().method(method).uri(uri).header("content-type", kind).body(());
    let Ok(request) = request else { return };
    match asked(&request.into_parts().0) {
        Ok(QuestionSource::Message(message)) => assert!(method == "GET" && message.len() <= 4096),
        Ok(QuestionSource::Body) => assert_eq!(method, "POST"),
        Err(refusal) => assert!(refusal.status.is_client_error()),
    }
});
