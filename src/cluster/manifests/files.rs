//! Finds and reads the files of manifests, within bounds.

use std::collections::{BTreeSet, HashSet};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::ManifestError;
use crate::watched::FolderWatch;

/// Largest file that is read, in octets.
const MAX_FILE: u64 = 256 << 20;
/// How much of a file is read at a time, in octets.
const BUFFER: usize = 256 << 10;
/// Maximum number of files, and of folders.
const MAX_FILES: usize = 20_000;
/// Maximum number of symbolic links on the way to the manifests.
const MAX_LINKS: usize = 40;

/// Inode, ctime (seconds and nanoseconds) and length of a file: a difference in any of them means a changed file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp(u64, i64, i64, u64);

impl Stamp {
    fn new(metadata: &std::fs::Metadata) -> Stamp {
        Stamp(metadata.ino(), metadata.ctime(), metadata.ctime_nsec(), metadata.len())
    }

    /// The length of the file in octets.
    pub(super) fn len(self) -> u64 {
        self.3
    }
}

/// The files under a path.
#[derive(Default)]
pub(super) struct Found {
    pub(super) files: BTreeSet<PathBuf>,
    /// The folders that were searched.
    pub(super) folders: Vec<PathBuf>,
    /// Folders that could not be searched.
    pub(super) problems: Vec<ManifestError>,
}

fn unreadable(path: &Path, source: std::io::Error) -> ManifestError {
    ManifestError::Unreadable { path: path.display().to_string(), source }
}

/// Returns the manifests under a path: the file itself, or the files of a folder and its subfolders that end in `.yaml`,
/// `.yml` or `.json`. Entries that begin with a dot are skipped: editors and mounted ConfigMaps have them.
///
/// # Errors
/// The path does not exist, or holds too many files.
pub(super) fn find(root: &Path) -> Result<Found, ManifestError> {
    let mut found = Found::default();
    if !std::fs::metadata(root).map_err(|source| unreadable(root, source))?.is_dir() {
        found.files.insert(root.to_path_buf());
        return Ok(found);
    }
    // A folder that is reached a second time, through a link, is not searched again.
    let (mut seen, mut waiting) = (HashSet::new(), vec![root.to_path_buf()]);
    while let Some(folder) = waiting.pop() {
        let mut search = || -> std::io::Result<Vec<PathBuf>> {
            let metadata = folder.metadata()?;
            if !seen.insert((metadata.dev(), metadata.ino())) {
                return Ok(Vec::new());
            }
            folder.read_dir()?.map(|entry| Ok(entry?.path())).collect()
        };
        let entries = match search() {
            Ok(entries) => entries,
            Err(source) if folder == *root => return Err(unreadable(root, source)),
            Err(source) => {
                found.problems.push(unreadable(&folder, source));
                continue;
            }
        };
        for entry in entries {
            let is_hidden = entry.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
            let Some(metadata) = entry.metadata().ok().filter(|_| !is_hidden) else { continue };
            let is_manifest = matches!(entry.extension().and_then(|end| end.to_str()), Some("yaml" | "yml" | "json"));
            if metadata.is_dir() {
                waiting.push(entry);
            } else if metadata.is_file() && is_manifest {
                found.files.insert(entry);
            }
        }
        found.folders.push(folder);
        if found.files.len() > MAX_FILES || found.folders.len() > MAX_FILES {
            return Err(ManifestError::TooMany { path: root.display().to_string() });
        }
    }
    Ok(found)
}

/// Finds the manifests under a path and watches their folders: from then on, every change is reported. Returns whether
/// everything could be watched.
pub(super) fn find_and_watch(root: &Path, watched: &FolderWatch) -> (Result<Found, ManifestError>, bool) {
    let mut found = find(root);
    // What appears before its folder is watched is found by a search after that.
    loop {
        let is_watched = match &found {
            Ok(found) => watch(watched, root, found).is_ok(),
            Err(_) => watch(watched, root, &Found::default()).is_ok(),
        };
        let again = find(root);
        let folders = |found: &Result<Found, ManifestError>| found.as_ref().map_or(0, |found| found.folders.len());
        let is_complete = folders(&again) <= folders(&found);
        found = again;
        if is_complete {
            return (found, is_watched);
        }
    }
}

/// Watches everything that decides what [`find`] returns: the folders, and the places where the path itself, or a link
/// on the way to it, can be replaced. Folders that have vanished are skipped.
fn watch(watched: &FolderWatch, root: &Path, found: &Found) -> std::io::Result<()> {
    let add = |folder: &Path, add: fn(&FolderWatch, &Path) -> std::io::Result<()>| match add(watched, folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    let mut path = std::path::absolute(root)?;
    for _ in 0..MAX_LINKS {
        let Some(parent) = path.parent().map(Path::to_path_buf) else { break };
        // Of a file, also its contents count.
        add(&parent, if found.folders.is_empty() { FolderWatch::add } else { FolderWatch::add_entries })?;
        let Ok(target) = std::fs::read_link(&path) else { break };
        path = parent.join(target);
    }
    found.folders.iter().try_for_each(|folder| add(folder, FolderWatch::add))
}

/// Returns the stamp of a file.
///
/// # Errors
/// The file cannot be examined.
pub(super) fn stamp(path: &Path) -> Result<Stamp, ManifestError> {
    std::fs::metadata(path).map(|metadata| Stamp::new(&metadata)).map_err(|source| unreadable(path, source))
}

/// Returns whether a path can be read only once, such as a pipe: `-` stands for standard input.
pub(super) fn is_stream(path: &Path) -> bool {
    path == Path::new("-") || std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir())
}

/// Opens a file, or standard input.
///
/// # Errors
/// The file cannot be read, or is too long.
pub(super) fn open(path: &Path) -> Result<Box<dyn BufRead>, ManifestError> {
    if path == Path::new("-") {
        return Ok(Box::new(BufReader::with_capacity(BUFFER, Bounded { input: std::io::stdin(), left: MAX_FILE })));
    }
    let file = std::fs::File::open(path).map_err(|source| unreadable(path, source))?;
    let length = file.metadata().map_err(|source| unreadable(path, source))?.len();
    if length > MAX_FILE {
        let reason = format!("longer than {} MiB; split it", MAX_FILE >> 20);
        return Err(ManifestError::Syntax { path: super::name_of(path), line: None, reason });
    }
    // A pipe has no length.
    Ok(Box::new(BufReader::with_capacity(BUFFER, Bounded { input: file, left: MAX_FILE })))
}

/// An input that fails at its limit. One that merely ended there would lose objects silently.
struct Bounded<R> {
    input: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.input.read(buffer)?;
        self.left = self
            .left
            .checked_sub(length as u64)
            .ok_or_else(|| std::io::Error::other(format!("longer than {} MiB; split it", MAX_FILE >> 20)))?;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_over_the_limit_fails_instead_of_ending() {
        for (length, is_read) in [(9, true), (10, true), (11, false)] {
            let text = vec![b'x'; length];
            let mut found = Vec::new();
            let result = Bounded { input: &*text, left: 10 }.read_to_end(&mut found);
            assert_eq!(result.is_ok(), is_read, "{length} octets");
        }
    }
}
