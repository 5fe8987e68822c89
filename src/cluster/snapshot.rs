//! Facts on disk: what a server starts from while the API does not answer.
//!
//! The file is a line that names format and version, a line of JSON for each fact, and a line with the SHA-256 of
//! everything before it. It is written beside its place and renamed, so that it is whole or not there.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ring::digest;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::zone::Facts;
use crate::zone::facts::Change;

/// The first word of the first line.
const MAGIC: &str = "callsign-facts";
/// Grows whenever a fact is written differently.
const VERSION: u32 = 1;

/// Why facts are not read or written.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// The file or its folder.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Another program's, or another version's.
    #[error("{path} is no file of saved facts of version {VERSION}")]
    Foreign {
        /// Which.
        path: PathBuf,
    },
    /// Cut or changed.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// How that shows.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Head {
    format: String,
    version: u32,
    /// When it was written.
    time: jiff::Timestamp,
    serial: u32,
}

/// What a file says.
#[derive(Debug)]
pub struct FactsSnapshot {
    /// The facts, as changes from nothing.
    pub changes: Vec<Change>,
    /// Serial of the last table that was published.
    pub serial: u32,
    time: jiff::Timestamp,
}

impl FactsSnapshot {
    /// How long ago it was written.
    pub fn age(&self) -> Duration {
        Duration::try_from(jiff::Timestamp::now().duration_since(self.time)).unwrap_or_default()
    }
}

/// Writes, and computes the checksum of what it writes.
struct Summed<W> {
    out: W,
    sum: digest::Context,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        let written = self.out.write(octets)?;
        self.sum.update(&octets[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes facts to `path`, whole or not at all.
///
/// # Errors
/// What the system says of the file or its folder.
pub fn write(path: &Path, facts: Facts, serial: u32) -> Result<(), SnapshotError> {
    // Whoever named the wrong file keeps it.
    let ours = |file: File| -> bool {
        let mut start = Vec::new();
        let read = BufReader::new(file).take(64).read_to_end(&mut start);
        read.is_ok() && start.starts_with(format!("{{\"format\":\"{MAGIC}\"").as_bytes())
    };
    if File::open(path).is_ok_and(|file| !ours(file)) {
        return Err(SnapshotError::Foreign { path: path.to_path_buf() });
    }
    let beside = path.with_extension("new");
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| SnapshotError::Io { path, source }
    };
    let fill = || -> io::Result<()> {
        let file = File::create(&beside)?;
        let mut out = Summed { out: BufWriter::new(&file), sum: digest::Context::new(&digest::SHA256) };
        let mut line = |value: &dyn ErasedLine| value.write(&mut out);
        line(&Head { format: MAGIC.to_owned(), version: VERSION, time: jiff::Timestamp::now(), serial })?;
        for (name, fact) in facts.namespaces {
            line(&Change::Namespace(name, Some(fact)))?;
        }
        for (key, fact) in facts.services {
            line(&Change::Service(key, Some((*fact).clone())))?;
        }
        for (key, fact) in facts.slices {
            line(&Change::Slice(key, Some((*fact).clone())))?;
        }
        let Summed { mut out, sum } = out;
        writeln!(out, "{}", hex(sum.finish().as_ref()))?;
        out.flush()?;
        drop(out);
        file.sync_all()
    };
    if let Err(error) = fill() {
        // A full disk is not made fuller.
        let _ = std::fs::remove_file(&beside);
        return Err(failed(&beside)(error));
    }
    std::fs::rename(&beside, path).map_err(failed(path))
}

/// Anything that is written as a line of JSON.
trait ErasedLine {
    fn write(&self, out: &mut dyn Write) -> io::Result<()>;
}

impl<T: Serialize> ErasedLine for T {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        serde_json::to_writer(&mut *out, self)?;
        out.write_all(b"\n")
    }
}

/// Reads what was saved. A file that is not whole is refused and left alone.
///
/// # Errors
/// Says whether the file cannot be read, is not ours, or is damaged.
pub fn read(path: &Path) -> Result<FactsSnapshot, SnapshotError> {
    let failed = |source| SnapshotError::Io { path: path.to_path_buf(), source };
    let damaged = |reason: &str| SnapshotError::Damaged { path: path.to_path_buf(), reason: reason.to_owned() };
    let mut input = BufReader::new(File::open(path).map_err(failed)?);
    let mut line = Vec::new();
    let mut next = |line: &mut Vec<u8>| -> io::Result<usize> {
        line.clear();
        input.read_until(b'\n', line)
    };
    next(&mut line).map_err(failed)?;
    let head: Option<Head> = serde_json::from_slice(&line).ok();
    let head = head.filter(|head| head.format == MAGIC && head.version == VERSION);
    let Some(head) = head else { return Err(SnapshotError::Foreign { path: path.to_path_buf() }) };
    let mut sum = digest::Context::new(&digest::SHA256);
    let mut changes = Vec::new();
    loop {
        sum.update(&line);
        if next(&mut line).map_err(failed)? == 0 {
            return Err(damaged("it ends before its checksum"));
        }
        if line.first() != Some(&b'{') {
            break;
        }
        let change = serde_json::from_slice(&line).map_err(|error| damaged(&error.to_string()))?;
        changes.push(change);
    }
    let told = String::from_utf8_lossy(&line).trim_end().to_owned();
    if told != hex(sum.finish().as_ref()) {
        return Err(damaged("its checksum is another"));
    }
    if next(&mut line).map_err(failed)? > 0 {
        return Err(damaged("something follows its checksum"));
    }
    Ok(FactsSnapshot { changes, serial: head.serial, time: head.time })
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}
