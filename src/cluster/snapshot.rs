//! Saved facts: the file that a server starts from while the API does not respond.
//!
//! The file has a line with the format and version, a line of JSON for each fact, and a line with the SHA-256 of
//! everything before it. It is written to a temporary file and renamed, so that it is either complete or absent.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::HEXLOWER;
use ring::digest;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::atomic_file::{self, Readers};
use crate::zone::Facts;
use crate::zone::facts::Change;

/// Value of `format` in the first line.
const MAGIC: &str = "callsign-facts";
/// Version of the format. It grows whenever the encoding of a fact changes.
const VERSION: u32 = 1;

/// Why saved facts cannot be read or written.
#[derive(Debug, Error)]
pub enum SnapshotError {
    /// The file or its folder cannot be accessed.
    #[error("cannot access {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file belongs to another program or has another version.
    #[error("{path} is not a file of saved facts (version {VERSION})")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file is truncated or modified.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The evidence.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
struct FileHeader {
    format: String,
    version: u32,
    /// When the file was written.
    time: jiff::Timestamp,
    serial: u32,
}

/// The contents of a file.
#[derive(Debug)]
pub struct FactsSnapshot {
    /// The facts, as changes to an empty cluster.
    pub changes: Vec<Change>,
    /// Serial of the last published table.
    pub serial: u32,
    time: jiff::Timestamp,
}

impl FactsSnapshot {
    /// Returns the time since the file was written.
    pub fn age(&self) -> Duration {
        Duration::try_from(jiff::Timestamp::now().duration_since(self.time)).unwrap_or_default()
    }
}

/// A writer that computes the checksum of everything written.
struct ChecksumWriter<W> {
    out: W,
    sum: digest::Context,
}

impl<W: Write> Write for ChecksumWriter<W> {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        let written = self.out.write(octets)?;
        self.sum.update(&octets[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Atomically writes facts to `path`.
///
/// # Errors
/// When the file or its folder is not writable, or `path` is not a file of saved facts: that is never overwritten.
pub fn write(path: &Path, facts: Facts, serial: u32) -> Result<(), SnapshotError> {
    // `--saved` may name another file by mistake: do not overwrite it.
    let is_snapshot = |file: File| -> bool {
        let mut start = Vec::new();
        let read = BufReader::new(file).take(64).read_to_end(&mut start);
        read.is_ok() && start.starts_with(format!("{{\"format\":\"{MAGIC}\"").as_bytes())
    };
    if File::open(path).is_ok_and(|file| !is_snapshot(file)) {
        return Err(SnapshotError::Foreign { path: path.to_path_buf() });
    }
    let fill = |file: &mut File| -> io::Result<()> {
        let mut out = ChecksumWriter { out: BufWriter::new(file), sum: digest::Context::new(&digest::SHA256) };
        let mut line = |value: &dyn JsonLine| value.write(&mut out);
        line(&FileHeader { format: MAGIC.to_owned(), version: VERSION, time: jiff::Timestamp::now(), serial })?;
        for (name, fact) in facts.namespaces {
            line(&Change::Namespace(name, Some(fact)))?;
        }
        for (key, fact) in facts.services {
            line(&Change::Service(key, Some(fact)))?;
        }
        for (key, fact) in facts.slices {
            line(&Change::Slice(key, Some(fact)))?;
        }
        let ChecksumWriter { mut out, sum } = out;
        writeln!(out, "{}", HEXLOWER.encode(sum.finish().as_ref()))?;
        out.flush()
    };
    atomic_file::replace(path, Readers::Owner, fill)
        .map_err(|source| SnapshotError::Io { path: path.to_path_buf(), source })
}

/// A value that is written as a line of JSON.
trait JsonLine {
    fn write(&self, out: &mut dyn Write) -> io::Result<()>;
}

impl<T: Serialize> JsonLine for T {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        serde_json::to_writer(&mut *out, self)?;
        out.write_all(b"\n")
    }
}

/// Reads saved facts. An incomplete file is an error and stays unchanged.
///
/// # Errors
/// When the file cannot be read, is not a file of saved facts, or is damaged.
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
    let head: Option<FileHeader> = serde_json::from_slice(&line).ok();
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
    let expected = String::from_utf8_lossy(&line).trim_end().to_owned();
    if expected != HEXLOWER.encode(sum.finish().as_ref()) {
        return Err(damaged("its checksum does not match"));
    }
    if next(&mut line).map_err(failed)? > 0 {
        return Err(damaged("there is data after its checksum"));
    }
    Ok(FactsSnapshot { changes, serial: head.serial, time: head.time })
}
