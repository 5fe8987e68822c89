//! Shutdown: signals, lame duck, drain.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
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

/// Waits for SIGTERM or SIGINT, then steps through the phases. SIGTERM starts a lame-duck phase of `lame_duck`. SIGINT,
/// which a person sends, skips it; a second signal of either kind ends it.
///
/// # Errors
/// The signal handlers cannot be installed.
pub async fn run_phases(phase: &watch::Sender<Phase>, lame_duck: Duration) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
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
    Ok(())
}
