//! Reads a response body line by line, within bounds.

use http_body_util::BodyExt;
use kube::client::Body;
use tokio::time::timeout;

use super::SILENCE_TIMEOUT;
use super::request::WatchError;
use crate::cluster::error_chain;

/// Largest buffer, in bytes, that an idle watch retains.
const RETAINED_BUFFER: usize = 16 * 1024;
/// Longest line of a watch, in bytes. Objects are far smaller: etcd limits them to 1.5 MB.
const MAX_LINE: usize = 16 << 20;

/// The lines of a response body.
pub(super) struct LineReader {
    body: Body,
    buffer: Vec<u8>,
    /// Start of the next line, and the position up to which the buffer was searched for a line end.
    start: usize,
    scanned: usize,
}

impl LineReader {
    pub(super) fn of(body: Body) -> LineReader {
        LineReader { body, buffer: Vec::new(), start: 0, scanned: 0 }
    }

    /// Returns the next line without its line end; `None` after the last one.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, WatchError> {
        loop {
            if let Some(length) = self.buffer[self.scanned..].iter().position(|octet| *octet == b'\n') {
                let end = self.scanned + length;
                let line = self.buffer[self.start..end].to_vec();
                (self.start, self.scanned) = (end + 1, end + 1);
                if line.iter().any(|octet| !octet.is_ascii_whitespace()) {
                    return Ok(Some(line));
                }
                continue;
            }
            // The unread rest moves to the front once per received frame, not once per line.
            self.buffer.drain(..self.start);
            self.start = 0;
            self.scanned = self.buffer.len();
            if self.buffer.is_empty() {
                self.buffer.shrink_to(RETAINED_BUFFER);
            }
            if self.buffer.len() > MAX_LINE {
                return Err(WatchError::Unreadable("watch event", "it is longer than 16 MiB".to_owned()));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(octets) = frame.into_data() {
                        self.buffer.extend_from_slice(&octets);
                    }
                }
                Some(Err(error)) => return Err(WatchError::Unreachable(error_chain(&error))),
                None if self.buffer.iter().all(u8::is_ascii_whitespace) => return Ok(None),
                None => return Err(WatchError::Unreadable("watch event", "it is truncated".to_owned())),
            }
        }
    }

    /// Returns the rest of the body. The timeout applies to each frame, so a slow body does not fail as long as data
    /// arrives.
    pub(super) async fn rest(&mut self) -> Result<Vec<u8>, WatchError> {
        loop {
            match timeout(SILENCE_TIMEOUT, self.body.frame()).await {
                Err(_) => return Err(WatchError::Silent(SILENCE_TIMEOUT)),
                Ok(None) => return Ok(std::mem::take(&mut self.buffer)),
                Ok(Some(Err(error))) => return Err(WatchError::Unreachable(error_chain(&error))),
                Ok(Some(Ok(frame))) => {
                    if let Ok(octets) = frame.into_data() {
                        self.buffer.extend_from_slice(&octets);
                    }
                }
            }
        }
    }
}
