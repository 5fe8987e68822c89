//! Waiting for changes in a folder, with inotify.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use tokio::sync::Notify;

/// A folder watched by the kernel.
pub(crate) struct FolderWatch(Arc<Notify>);

impl FolderWatch {
    /// Starts watching on a thread of the given name. It reports renames, as of mounted ConfigMaps, and writes; editors
    /// do either.
    ///
    /// # Errors
    /// When inotify is unavailable or at its limit, or the thread cannot be started.
    pub(crate) fn new(folder: &Path, thread: &str) -> io::Result<FolderWatch> {
        let descriptor = init(CreateFlags::CLOEXEC)?;
        let changes = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::CREATE;
        add_watch(&descriptor, folder, changes)?;
        let changed = Arc::new(Notify::new());
        let listener = Arc::downgrade(&changed);
        // A blocking thread costs nothing while the folder is quiet: only a change wakes it.
        std::thread::Builder::new().name(thread.to_owned()).stack_size(64 * 1024).spawn(move || {
            let mut events = [0u8; 4096];
            while rustix::io::read(&descriptor, &mut events).is_ok() {
                let Some(changed) = listener.upgrade() else { return };
                changed.notify_one();
            }
        })?;
        Ok(FolderWatch(changed))
    }

    /// Waits until something in the folder has changed since the last call. It does not report what changed: callers
    /// check everything again.
    pub(crate) async fn changed(&self) {
        self.0.notified().await;
    }
}
