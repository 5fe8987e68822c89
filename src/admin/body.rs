//! Bodies of responses: a text, or the listing of Services, which is written piece by piece while the client reads.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Bytes, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use crate::report::services::{self, Cursor};
use crate::report::{Catalog, Viewer};

/// Smallest piece of a listing, in octets.
const PIECE: usize = 8 * 1024;

/// The body of a response.
pub(super) enum Body {
    /// What is left of a text.
    Text(Option<Bytes>),
    /// A listing in progress.
    Listing(Box<Listing>),
}

/// A listing that is being written.
pub(super) struct Listing {
    catalog: Catalog,
    viewer: Viewer,
    /// The last Service that was written.
    cursor: Cursor,
    state: State,
    _permit: OwnedSemaphorePermit,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// No Service has been written yet.
    Start,
    /// At least one has.
    Middle,
    /// The array is closed.
    End,
}

impl From<String> for Body {
    fn from(text: String) -> Body {
        Body::Text(Some(text.into()))
    }
}

impl Body {
    /// Lists the Services of `catalog` that the viewer may see, as a JSON array.
    pub(super) fn listing(catalog: Catalog, viewer: Viewer, permit: OwnedSemaphorePermit) -> Body {
        Body::Listing(Box::new(Listing {
            catalog,
            viewer,
            cursor: Cursor::default(),
            state: State::Start,
            _permit: permit,
        }))
    }
}

impl Listing {
    /// Writes the next piece; `None` after the last.
    fn piece(&mut self) -> Option<Vec<u8>> {
        if self.state == State::End {
            return None;
        }
        let mut piece = Vec::with_capacity(2 * PIECE);
        while piece.len() < PIECE {
            let Some(entry) = services::next_for(&self.catalog, &mut self.cursor, &self.viewer) else {
                piece.extend_from_slice(if self.state == State::Start { b"[]\n" } else { b"]\n" });
                self.state = State::End;
                break;
            };
            piece.push(if self.state == State::Start { b'[' } else { b',' });
            self.state = State::Middle;
            // Writing to memory cannot fail, nor can the types of an entry.
            let _ = serde_json::to_writer(&mut piece, &entry);
        }
        Some(piece)
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = match &mut *self {
            Body::Text(text) => text.take(),
            Body::Listing(listing) => listing.piece().map(Bytes::from),
        };
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Text(text) => text.is_none(),
            Body::Listing(listing) => listing.state == State::End,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Body::Listing(_) => SizeHint::default(),
        }
    }
}
