//! Replaces files atomically.

use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use tempfile::Builder;

/// Age beyond which a temporary file counts as abandoned by its writer.
const ABANDONED: Duration = Duration::from_secs(60);

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Only the owner, even if an existing file has other permissions.
    Owner,
    /// Everyone, as far as the umask allows. An existing file keeps its permissions.
    Everyone,
}

/// Replaces a file with one that `fill` writes. Readers see either the old contents or the new, and after a crash one
/// of them is on disk. If anything fails, the old file stays and the temporary file is removed.
///
/// # Errors
/// An I/O error on the file or its folder, or the error that `fill` returns.
pub fn replace(path: &Path, readers: Readers, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    remove_abandoned(folder, &prefix);
    let mode = if readers == Readers::Owner { 0o600 } else { 0o644 };
    let mut builder = Builder::new();
    let mut temporary = builder.prefix(&prefix).permissions(Permissions::from_mode(mode)).tempfile_in(folder)?;
    if let (Readers::Everyone, Ok(existing)) = (readers, std::fs::metadata(path)) {
        temporary.as_file().set_permissions(existing.permissions())?;
    }
    fill(temporary.as_file_mut())?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|error| error.error)?;
    // Syncing the folder makes the rename durable. Errors are ignored, because some file systems cannot sync folders
    // and the file has been replaced already.
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(())
}

/// Removes temporary files that killed writers left behind. Otherwise, a server that is killed again and again would
/// fill its volume.
fn remove_abandoned(folder: &Path, prefix: &OsString) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes());
        let modified = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if is_ours && modified().is_some_and(|age| age > ABANDONED) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::time::SystemTime;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        replace(&path, Readers::Everyone, |file| file.write_all(b"old")).unwrap();
        let failed = replace(&path, Readers::Everyone, |file| {
            file.write_all(b"new")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn permissions_stay_unless_only_the_owner_may_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"old").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        replace(&path, Readers::Everyone, |file| file.write_all(b"new")).unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), mode(&path)), (b"new".to_vec(), 0o640));
        replace(&path, Readers::Owner, |file| file.write_all(b"new")).unwrap();
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn only_old_temporary_files_of_the_same_file_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let old = SystemTime::now() - 2 * ABANDONED;
        for (name, is_old) in [(".file.aaaaaa", true), (".file.bbbbbb", false), (".other.cccccc", true)] {
            let file = File::create(folder.path().join(name)).unwrap();
            if is_old {
                file.set_modified(old).unwrap();
            }
        }
        replace(&folder.path().join("file"), Readers::Owner, |_| Ok(())).unwrap();
        let mut left: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".file.bbbbbb", ".other.cccccc", "file"]);
    }
}
