//! Shutdown: signals, lame duck, drain.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// A phase in the life of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The server is ready and answers.
    Serving,
    /// The server answers, but reports that it is not ready, so that no new clients arrive.
    LameDuck,
    /// The server accepts nothing new and finishes the queries in flight.
    Draining,
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

/// Waits for SIGTERM or SIGINT, then steps through the phases. SIGTERM starts a lame-duck phase of `lame_duck`. SIGINT,
/// which a person sends, skips it; a second signal of either kind ends it.
pub async fn run_phases(mut signals: Signals, phase: &watch::Sender<Phase>, lame_duck: Duration) {
    let Signals { terminate, interrupt } = &mut signals;
    let patient = tokio::select! {
        _ = terminate.recv() => true,
        _ = interrupt.recv() => false,
    };
    phase.send_replace(Phase::LameDuck);
    if patient && !lame_duck.is_zero() {
        tracing::info!(?lame_duck, "shutting down; no longer ready, but still answering");
        tokio::select! {
            () = tokio::time::sleep(lame_duck) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    phase.send_replace(Phase::Draining);
}
