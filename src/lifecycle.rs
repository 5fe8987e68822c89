//! From the first signal to the last answer.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Where a server is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It answers.
    Serving,
    /// It answers, but says that it is not ready, so that nobody new comes.
    LameDuck,
    /// It finishes what is in flight.
    Draining,
}

/// How long connections have to finish once draining begins.
pub const DRAIN: Duration = Duration::from_secs(5);

/// Waits for SIGTERM or SIGINT and then leads through the phases. SIGTERM waits for `lame_duck`; SIGINT, which a person
/// sends, does not, and neither does a second signal of either kind.
///
/// # Errors
/// When the system lets nobody listen for signals.
pub async fn lead(phase: &watch::Sender<Phase>, lame_duck: Duration) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let patient = tokio::select! {
        _ = terminate.recv() => true,
        _ = interrupt.recv() => false,
    };
    phase.send_replace(Phase::LameDuck);
    if patient && !lame_duck.is_zero() {
        tracing::info!(?lame_duck, "shutting down: not ready, still answering");
        tokio::select! {
            () = tokio::time::sleep(lame_duck) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    phase.send_replace(Phase::Draining);
    Ok(())
}
