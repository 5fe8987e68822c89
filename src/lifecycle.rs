//! Shutdown: signals, lame duck, drain.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;

/// A phase in the life of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The server is ready and answers.
    Serving,
    /// The server answers, but reports that it is not ready, so that no new clients arrive.
    LameDuck {
        /// How many queries had come before.
        queries: u64,
    },
    /// The server accepts nothing new and finishes the queries in flight.
    Draining,
}

/// Calls `reload` for each SIGHUP, which no longer ends the process once this has been called.
///
/// # Errors
/// The signal handler cannot be installed.
pub fn on_hangup(reload: fn()) -> std::io::Result<impl Future<Output = ()>> {
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP; reading manifests, certificates and resolv.conf again");
            reload();
        }
    })
}

/// The signals that end a server. Once they exist, a signal no longer ends the process at once.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Installs the handlers. It has to be called within a runtime.
    ///
    /// # Errors
    /// The signal handlers cannot be installed.
    pub fn install() -> std::io::Result<Signals> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }
}

/// How long a server answers after SIGTERM: clients that have not yet moved to another server get their answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LameDuck {
    /// The least time. It must be long enough for the load balancer to notice that the server is not ready: until then,
    /// kube-proxy keeps sending clients' queries here. If it is zero, there is no lame duck.
    pub least: Duration,
    /// The most time.
    pub most: Duration,
}

/// After the least time, the lame duck ends once no query has come for this long.
const QUIET: Duration = Duration::from_secs(3);
/// Time between two looks at the number of queries.
const LOOK: Duration = Duration::from_millis(100);

/// Waits for SIGTERM or SIGINT, then steps through the phases. SIGTERM starts the lame duck. SIGINT, which a person
/// sends, skips it; a second signal of either kind ends it. `queries` returns how many have come.
pub async fn run_phases(
    mut signals: Signals,
    phase: &watch::Sender<Phase>,
    lame_duck: LameDuck,
    queries: impl Fn() -> u64,
) {
    let Signals { terminate, interrupt } = &mut signals;
    let patient = tokio::select! {
        _ = terminate.recv() => true,
        _ = interrupt.recv() => false,
    };
    let before = queries();
    phase.send_replace(Phase::LameDuck { queries: before });
    let LameDuck { least, most } = lame_duck;
    if patient && !least.is_zero() {
        tracing::info!(?least, ?most, "shutting down; no longer ready, but still answering");
        tokio::select! {
            () = until_quiet(lame_duck, &queries) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!(queries = queries().saturating_sub(before), "the lame duck is over");
    }
    phase.send_replace(Phase::Draining);
}

/// Returns after the least time once it is quiet, and after the most time in any case.
async fn until_quiet(LameDuck { least, most }: LameDuck, queries: &impl Fn() -> u64) {
    let started = Instant::now();
    let (mut seen, mut latest) = (queries(), started);
    loop {
        tokio::time::sleep(LOOK).await;
        let (now, count) = (Instant::now(), queries());
        if count != seen {
            (seen, latest) = (count, now);
        }
        let since = now - started;
        if since >= least.max(most) || since >= least && now - latest >= QUIET {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_lame_duck_lasts_until_no_query_comes() {
        let [five, thirty] = [5, 30].map(Duration::from_secs);
        let cases = [
            ("no queries: the least time", 0.0, (five, thirty), 5.0),
            ("queries for two seconds: the least time", 2.0, (five, thirty), 5.0),
            ("queries for four seconds: three quiet seconds more", 4.0, (five, thirty), 7.0),
            ("queries for twenty seconds: three quiet seconds more", 20.0, (five, thirty), 23.0),
            ("queries without end: the most time", 1e9, (five, thirty), 30.0),
            ("a least time above the most", 1e9, (thirty, five), 30.0),
        ];
        for (case, busy, (least, most), expected) in cases {
            let (started, count) = (Instant::now(), Cell::new(0));
            let queries = || {
                if started.elapsed().as_secs_f64() < busy {
                    count.set(count.get() + 1);
                }
                count.get()
            };
            until_quiet(LameDuck { least, most }, &queries).await;
            let took = started.elapsed().as_secs_f64();
            assert!((took - expected).abs() < 0.3, "{case}: {took} s");
        }
    }
}
