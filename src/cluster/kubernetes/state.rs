//! The protocol of list and watch as states: which request follows which outcome.

/// The next request of a watcher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// A streamed list, which continues as a watch.
    Stream,
    /// A page of a list.
    Page {
        /// The server's `continue` token; `None` for the first page.
        next: Option<String>,
    },
    /// A watch for changes after a resource version.
    Watch {
        /// The resource version.
        version: String,
    },
}

/// The result of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchOutcome {
    /// A page arrived.
    Paged {
        /// Token of the next page; `None` after the last one.
        next: Option<String>,
        /// Resource version of the list.
        version: String,
    },
    /// The list is complete, or an event or bookmark arrived. The local state is now at this resource version.
    At(String),
    /// The watch ended normally.
    Ended,
    /// The resource version or token has expired (410), or is newer than the server's own.
    Gone,
    /// The server does not support streamed lists.
    NoStreams,
    /// Any other failure.
    Failed,
}

impl State {
    /// Returns the next state. `streams` says whether to request lists as streams.
    pub fn step(self, outcome: WatchOutcome, streams: bool) -> State {
        let list = || if streams { State::Stream } else { State::Page { next: None } };
        match (self, outcome) {
            (_, WatchOutcome::NoStreams) => State::Page { next: None },
            (_, WatchOutcome::Gone) => list(),
            (_, WatchOutcome::Paged { next: Some(next), .. }) => State::Page { next: Some(next) },
            (_, WatchOutcome::Paged { next: None, version }) => State::Watch { version },
            (_, WatchOutcome::At(version)) => State::Watch { version },
            // The stream ended before its list was complete.
            (State::Stream, WatchOutcome::Ended | WatchOutcome::Failed) => list(),
            // A page is requested again with the same token; a watch resumes at its resource version.
            (state, WatchOutcome::Ended | WatchOutcome::Failed) => state,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_leads_to_the_right_next_request() {
        let page = |next: Option<&str>| State::Page { next: next.map(Into::into) };
        let watch = |version: &str| State::Watch { version: version.into() };
        let paged = |next: Option<&str>| WatchOutcome::Paged { next: next.map(Into::into), version: "7".into() };
        let cases = [
            (
                "a complete streamed list continues as a watch",
                State::Stream,
                WatchOutcome::At("7".into()),
                true,
                watch("7"),
            ),
            (
                "a server without streamed lists gets a paged list",
                State::Stream,
                WatchOutcome::NoStreams,
                false,
                page(None),
            ),
            ("a broken stream is requested again", State::Stream, WatchOutcome::Failed, true, State::Stream),
            ("a page leads to the next", page(None), paged(Some("t")), false, page(Some("t"))),
            ("the last page leads to a watch", page(Some("t")), paged(None), false, watch("7")),
            ("a failed page is requested again", page(Some("t")), WatchOutcome::Failed, false, page(Some("t"))),
            ("410 between pages restarts the list", page(Some("t")), WatchOutcome::Gone, false, page(None)),
            ("an event advances the watch", watch("7"), WatchOutcome::At("8".into()), true, watch("8")),
            ("a watch that ended resumes at its version", watch("8"), WatchOutcome::Ended, true, watch("8")),
            ("a failed watch resumes at its version", watch("8"), WatchOutcome::Failed, true, watch("8")),
            ("410 during a watch starts a streamed relist", watch("8"), WatchOutcome::Gone, true, State::Stream),
            (
                "without streams, 410 during a watch starts a paged relist",
                watch("8"),
                WatchOutcome::Gone,
                false,
                page(None),
            ),
        ];
        for (case, state, outcome, streams, expected) in cases {
            assert_eq!(state.step(outcome, streams), expected, "{case}");
        }
    }
}
