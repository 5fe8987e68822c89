//! Waiting for changes in folders, with inotify.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// How many times the quiet period a stream of changes may last before [`FolderWatch::settled`] returns nevertheless.
const PATIENCE: u32 = 10;

/// All watches of the process, for [`wake_all`].
static WATCHES: Mutex<Vec<Weak<Notify>>> = Mutex::new(Vec::new());

/// Wakes everything that waits for changes, as if there had been some: after SIGHUP, all files are read again.
pub(crate) fn wake_all() {
    let mut watches = WATCHES.lock().unwrap_or_else(PoisonError::into_inner);
    watches.retain(|watch| {
        watch.upgrade().is_some_and(|changed| {
            changed.notify_one();
            true
        })
    });
}

/// Folders watched by the kernel. Clones watch together.
#[derive(Clone)]
pub(crate) struct FolderWatch {
    descriptor: Arc<OwnedFd>,
    changed: Arc<Notify>,
}

impl FolderWatch {
    /// Starts watching, on a thread of the given name, at first no folder.
    ///
    /// # Errors
    /// When inotify is unavailable or at its limit, or the thread cannot be started.
    pub(crate) fn new(thread: &str) -> io::Result<FolderWatch> {
        let descriptor = Arc::new(init(CreateFlags::CLOEXEC)?);
        let changed = Arc::new(Notify::new());
        WATCHES.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&changed));
        let (listener, events_of) = (Arc::downgrade(&changed), descriptor.clone());
        // A blocking thread costs nothing while the folders are quiet: only a change wakes it.
        std::thread::Builder::new().name(thread.to_owned()).stack_size(64 * 1024).spawn(move || {
            let mut events = [0u8; 4096];
            while rustix::io::read(&events_of, &mut events).is_ok() {
                let Some(changed) = listener.upgrade() else { return };
                changed.notify_one();
            }
        })?;
        Ok(FolderWatch { descriptor, changed })
    }

    /// Watches a folder for writes and renames, as of mounted ConfigMaps; editors do either. Adding a folder again has
    /// no effect, unless another one has taken its place. The kernel forgets folders that are deleted.
    ///
    /// # Errors
    /// When the folder does not exist, or the limit of watches is reached.
    pub(crate) fn add(&self, folder: &Path) -> io::Result<()> {
        self.watch(folder, WatchFlags::CLOSE_WRITE)
    }

    /// Watches a folder only for entries that come and go, not for writes to its files.
    ///
    /// # Errors
    /// As for [`FolderWatch::add`].
    pub(crate) fn add_entries(&self, folder: &Path) -> io::Result<()> {
        self.watch(folder, WatchFlags::empty())
    }

    fn watch(&self, folder: &Path, more: WatchFlags) -> io::Result<()> {
        let changes = WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::CREATE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::MASK_ADD;
        add_watch(&self.descriptor, folder, changes | more)?;
        Ok(())
    }

    /// Waits until something has changed since the last call and then nothing for the quiet period, at most ten times
    /// as long: files are written in several steps, and belong together. It does not report what changed; callers check
    /// everything again.
    pub(crate) async fn settled(&self, quiet: Duration) {
        self.changed.notified().await;
        let last = Instant::now() + quiet * PATIENCE;
        while timeout_at(last.min(Instant::now() + quiet), self.changed.notified()).await.is_ok() {}
    }
}
