//! Waiting for a folder to change.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use tokio::sync::Notify;

/// A folder that the kernel watches.
pub(crate) struct Watched(Arc<Notify>);

impl Watched {
    /// Starts watching, on a thread of this name. Mounted ConfigMaps change by a rename, editors by a rename or a write: both are told.
    ///
    /// # Errors
    /// When the kernel will not watch one more folder.
    pub(crate) fn new(folder: &Path, thread: &str) -> io::Result<Watched> {
        let descriptor = init(CreateFlags::CLOEXEC)?;
        let changes = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::CREATE;
        add_watch(&descriptor, folder, changes)?;
        let changed = Arc::new(Notify::new());
        let listener = Arc::downgrade(&changed);
        // A thread that sleeps in the kernel: it wakes for a change and for nothing else.
        std::thread::Builder::new().name(thread.to_owned()).stack_size(64 * 1024).spawn(move || {
            let mut events = [0u8; 4096];
            while rustix::io::read(&descriptor, &mut events).is_ok() {
                let Some(changed) = listener.upgrade() else { return };
                changed.notify_one();
            }
        })?;
        Ok(Watched(changed))
    }

    /// Returns when something in the folder has changed since the last call. What it was does not matter: everything
    /// is looked at again.
    pub(crate) async fn changed(&self) {
        self.0.notified().await;
    }
}
