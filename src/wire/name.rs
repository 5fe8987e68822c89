//! Domain names in wire format: a sequence of length-prefixed labels, terminated by the empty label (RFC 1035 section
//! 3.1).

use thiserror::Error;

/// Maximum length of a name in octets, including length octets and the root (RFC 1035 section 2.3.4).
pub const MAX_NAME: usize = 255;
/// Maximum length of a label in octets, excluding its length octet.
pub const MAX_LABEL: usize = 63;
/// A name of 255 octets has at most 127 labels besides the root. This and [`FOLDED`] are powers of two: an index taken
/// modulo either needs no bounds check.
const STARTS: usize = 128;
/// Buffer size for the longest name, in octets.
const FOLDED: usize = 256;
/// Padding after the buffer, so that a whole word can be read at the end of a name.
const SLACK: usize = 8;

/// The reason why a name, in wire format or as text, is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// The message ended inside the name.
    #[error("the name runs past the end of the message")]
    Short,
    /// A length octet above 63: a compression pointer or a reserved label type.
    #[error("the name has a compression pointer or a label longer than 63 octets")]
    Label,
    /// More than 255 octets.
    #[error("the name is longer than 255 octets")]
    Long,
    /// An empty label; only text can have one.
    #[error("the name has an empty label")]
    Empty,
}

/// A name in lower case with the offset of each label, as lookups use it. A reply echoes the question from the message,
/// which preserves the client's spelling.
#[derive(Clone)]
pub struct Name {
    folded: [u8; FOLDED + SLACK],
    starts: [u8; STARTS],
    labels: usize,
    len: usize,
}

impl Name {
    /// Returns a buffer to read a name into. It is large, so it is filled in place and never moved.
    #[inline(always)]
    pub fn empty() -> Name {
        Name { folded: [0; FOLDED + SLACK], starts: [0; STARTS], labels: 0, len: 1 }
    }

    /// Parses the name at `at`. A compression pointer is an error: no name precedes the question's.
    pub fn parse(message: &[u8], at: usize) -> Result<Name, NameError> {
        let mut name = Name::empty();
        name.read(message, at)?;
        Ok(name)
    }

    /// Replaces this name with the name at `at`. After an error, its contents are unspecified.
    #[inline(always)]
    pub fn read(&mut self, message: &[u8], at: usize) -> Result<(), NameError> {
        let octets = message.get(at..).ok_or(NameError::Short)?;
        let octets = octets.get(..MAX_NAME).unwrap_or(octets);
        // The octets after the name are folded as well, which is cheaper than finding the end of the name first.
        fold(octets, &mut self.folded);
        let (mut offset, mut labels) = (0, 0);
        while offset < octets.len() {
            let length = usize::from(self.folded[offset % FOLDED]);
            if length > MAX_LABEL {
                return Err(NameError::Label);
            }
            self.starts[labels % STARTS] = offset as u8;
            offset += 1 + length;
            if length == 0 {
                (self.labels, self.len) = (labels, offset);
                return Ok(());
            }
            labels += 1;
        }
        Err(if octets.len() == MAX_NAME { NameError::Long } else { NameError::Short })
    }

    /// The name in lower case, root included.
    #[inline(always)]
    pub fn wire(&self) -> &[u8] {
        &self.folded[..self.len.min(MAX_NAME)]
    }

    /// Number of labels, excluding the root.
    #[inline(always)]
    pub fn labels(&self) -> usize {
        self.labels
    }

    /// Length on the wire in octets, root included.
    #[inline(always)]
    pub fn wire_len(&self) -> usize {
        self.len
    }

    /// Offset of the length octet of label `index`, counted from the left; `index == labels()` is the root.
    #[inline(always)]
    pub fn start(&self, index: usize) -> usize {
        usize::from(self.starts[index.min(self.labels) % STARTS])
    }

    /// Label `index` from the left with its length octet; empty past the end.
    #[inline(always)]
    pub fn label(&self, index: usize) -> &[u8] {
        if index >= self.labels {
            return &[];
        }
        let rest = &self.folded[usize::from(self.starts[index % STARTS])..];
        rest.get(..=usize::from(rest[0])).unwrap_or(&[])
    }

    /// Returns the eight octets at `at` as a little-endian number. Octets past the end of the name are arbitrary.
    #[inline(always)]
    pub fn word(&self, at: usize) -> u64 {
        self.folded[at % FOLDED..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
    }

    /// Labels `from..to` with their length octets, without the root.
    #[inline(always)]
    pub fn span(&self, from: usize, to: usize) -> &[u8] {
        if to > self.labels {
            return &[];
        }
        self.folded.get(self.start(from)..self.start(to)).unwrap_or(&[])
    }

    /// The name from label `index` on, root included.
    #[inline(always)]
    pub fn tail(&self, index: usize) -> &[u8] {
        self.wire().get(self.start(index)..).unwrap_or(&[])
    }

    /// Number of labels before `suffix` (wire format, root included); `None` if the name is not at or below it.
    #[inline(always)]
    pub fn below(&self, suffix: &[u8], suffix_labels: usize) -> Option<usize> {
        let above = self.labels.checked_sub(suffix_labels)?;
        let start = usize::from(self.starts[above % STARTS]);
        let tail = self.folded[start..].get(..self.len.saturating_sub(start))?;
        same(tail, suffix).then_some(above)
    }
}

/// Copies `source`, which is at most as long as a name, in lower case, sixteen octets at a time. Length octets are at
/// most 63 and so never letters, so that the label boundaries do not matter.
#[inline(always)]
fn fold(source: &[u8], target: &mut [u8; FOLDED + SLACK]) {
    let (blocks, rest) = source.as_chunks::<16>();
    let (places, _) = target.as_chunks_mut::<16>();
    for (block, place) in blocks.iter().zip(places.iter_mut()) {
        *place = block.map(|octet| octet.to_ascii_lowercase());
    }
    let end = source.len() % (FOLDED + 1);
    if let (Some(last), Some(place)) = (source.last_chunk::<16>(), end.checked_sub(16)) {
        // The last block overlaps the previous one, which leaves no remainder.
        if let Some(place) = target[place..].first_chunk_mut::<16>() {
            *place = last.map(|octet| octet.to_ascii_lowercase());
        }
    } else {
        for (place, octet) in target.iter_mut().zip(rest) {
            *place = octet.to_ascii_lowercase();
        }
    }
}

/// Whether two octet strings are equal. Short ones are compared by their first and last words, which overlap, without a
/// function call.
#[inline(always)]
pub fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    match a.len() {
        4..8 => a.first_chunk::<4>() == b.first_chunk::<4>() && a.last_chunk::<4>() == b.last_chunk::<4>(),
        8..=16 => a.first_chunk::<8>() == b.first_chunk::<8>() && a.last_chunk::<8>() == b.last_chunk::<8>(),
        _ => a == b,
    }
}

/// Converts text to a label in lower case with its length octet.
///
/// # Errors
/// [`NameError::Empty`] if the text is empty, [`NameError::Label`] if it is longer than 63 octets.
pub fn label_of(text: &str) -> Result<Box<[u8]>, NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > MAX_LABEL {
        return Err(NameError::Label);
    }
    let mut label = Vec::with_capacity(1 + text.len());
    label.push(text.len() as u8);
    label.extend(text.bytes().map(|octet| octet.to_ascii_lowercase()));
    Ok(label.into())
}

/// Converts a name from text (`web.cluster.local`, with or without a trailing dot) to wire format in lower case, root
/// included.
///
/// # Errors
/// A [`NameError`] that identifies the rule of RFC 1035 section 2.3.4 that the text breaks.
pub fn name_from_text(text: &str) -> Result<Box<[u8]>, NameError> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let mut wire = Vec::with_capacity(text.len() + 2);
    for label in text.split('.').filter(|_| !text.is_empty()) {
        wire.extend_from_slice(&label_of(label)?);
    }
    wire.push(0);
    if wire.len() > MAX_NAME {
        return Err(NameError::Long);
    }
    Ok(wire.into())
}

/// Converts labels from wire format to text, without a trailing dot. Dots, backslashes and unprintable octets in a
/// label are written `\DDD` (RFC 1035 section 5.1).
pub fn text_of(mut wire: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(wire.len());
    while let Some((&length, rest)) = wire.split_first() {
        let (label, rest) = rest.split_at(usize::from(length).min(rest.len()));
        if label.is_empty() {
            break;
        }
        if !text.is_empty() {
            text.push('.');
        }
        for &octet in label {
            if octet.is_ascii_graphic() && octet != b'.' && octet != b'\\' {
                text.push(char::from(octet));
            } else {
                let _ = write!(text, "\\{octet:03}");
            }
        }
        wire = rest;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folding_lowercases_every_octet_as_ascii() {
        for octet in 0..=255u8 {
            for length in [0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 254, 255] {
                let mut folded = [0; FOLDED + SLACK];
                fold(&vec![octet; length], &mut folded);
                assert_eq!(folded[..length], vec![octet.to_ascii_lowercase(); length], "{octet}, {length} times");
            }
        }
    }

    #[test]
    fn same_compares_every_octet_at_every_length() {
        for length in 0..40usize {
            let octets: Vec<u8> = (0..length as u8).collect();
            assert!(same(&octets, &octets.clone()));
            assert!(!same(&octets, &[&octets[..], b"x"].concat()));
            for at in 0..length {
                let mut other = octets.clone();
                other[at] ^= 0x80;
                assert!(!same(&octets, &other), "{length}, {at}");
            }
        }
    }

    #[test]
    fn names_are_accepted_up_to_the_limits_and_rejected_beyond() {
        let cases: &[(&str, Vec<u8>, Result<usize, NameError>)] = &[
            ("the root", vec![0], Ok(0)),
            ("a label of 63 octets", [&[63][..], &[b'a'; 63], &[0]].concat(), Ok(1)),
            ("a label of 64 octets", [&[64][..], &[b'a'; 64], &[0]].concat(), Err(NameError::Label)),
            ("a compression pointer", vec![0xc0, 0x0c], Err(NameError::Label)),
            ("127 labels, 255 octets", [[1, b'a'].repeat(127), vec![0]].concat(), Ok(127)),
            ("128 labels, 257 octets", [[1, b'a'].repeat(128), vec![0]].concat(), Err(NameError::Long)),
            ("256 octets", [[1, b'a'].repeat(126), vec![2, b'a', b'a', 0]].concat(), Err(NameError::Long)),
            ("a name without a root", vec![1, b'a'], Err(NameError::Short)),
            ("an empty message", vec![], Err(NameError::Short)),
        ];
        for (case, wire, expected) in cases {
            assert_eq!(Name::parse(wire, 0).map(|name| name.labels()), *expected, "{case}");
        }
    }

    #[test]
    fn text_survives_conversion_to_wire_format_and_back() {
        for text in ["", "a", "web.cluster.local", "_http._tcp.api"] {
            assert_eq!(text_of(&name_from_text(text).unwrap()), text);
        }
        assert_eq!(name_from_text("Web.").unwrap().as_ref(), b"\x03web\0");
        assert_eq!(name_from_text("a..b"), Err(NameError::Empty));
        assert_eq!(text_of(b"\x03a.b\0"), "a\\046b");
    }
}
