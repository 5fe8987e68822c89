//! Domain names on the wire: a run of length-prefixed labels that ends with the empty one (RFC 1035 section 3.1).

use thiserror::Error;

/// The longest name in octets, lengths and root included (RFC 1035 section 2.3.4).
pub const MAX_NAME: usize = 255;
/// The longest label in octets, its length not counted.
pub const MAX_LABEL: usize = 63;
/// A name of 255 octets has at most 127 labels besides the root.
const MAX_LABELS: usize = 127;
/// Names are folded in words of eight octets; the copy has room for the last one.
const FOLDED: usize = 256;

/// Why octets are not a name that a question may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// The message ended inside the name.
    #[error("the name runs past the end of the message")]
    Short,
    /// A length octet above 63: a compression pointer or a reserved label type.
    #[error("the name has a compression pointer or a label over 63 octets")]
    Label,
    /// More than 255 octets.
    #[error("the name is over 255 octets")]
    Long,
    /// Text only: a label with nothing in it.
    #[error("the name has an empty label")]
    Empty,
}

/// A name in lower case with the place of each label: what lookups work on. The question itself is echoed from the
/// message, so the caller's spelling is never lost.
#[derive(Clone)]
pub struct Name {
    folded: [u8; FOLDED],
    starts: [u8; MAX_LABELS + 1],
    labels: usize,
    len: usize,
}

impl Name {
    /// A place to read a name into. It is large, so it is filled where it is and never moved.
    #[inline(always)]
    pub fn empty() -> Name {
        Name { folded: [0; FOLDED], starts: [0; MAX_LABELS + 1], labels: 0, len: 1 }
    }

    /// Reads the name at `at`. Pointers are an error: nothing precedes a question that it could point to.
    pub fn parse(message: &[u8], at: usize) -> Result<Name, NameError> {
        let mut name = Name::empty();
        name.read(message, at)?;
        Ok(name)
    }

    /// Reads the name at `at` in the place of this one. After an error it is the root.
    #[inline(always)]
    pub fn read(&mut self, message: &[u8], at: usize) -> Result<(), NameError> {
        let octets = message.get(at..).ok_or(NameError::Short)?;
        let (mut offset, mut labels) = (0, 0);
        loop {
            let length = usize::from(*octets.get(offset).ok_or(NameError::Short)?);
            if length == 0 {
                break;
            }
            if length > MAX_LABEL {
                return Err(NameError::Label);
            }
            // 253 octets of labels so far leave no room for another label and the root.
            if offset + 1 + length >= MAX_NAME {
                return Err(NameError::Long);
            }
            if let Some(start) = self.starts.get_mut(labels) {
                *start = offset as u8;
            }
            labels += 1;
            offset += 1 + length;
        }
        if let Some(end) = self.starts.get_mut(labels) {
            *end = offset as u8;
        }
        let source = octets.get(..=offset).ok_or(NameError::Short)?;
        fold(source, &mut self.folded);
        (self.labels, self.len) = (labels, offset + 1);
        Ok(())
    }

    /// The name in lower case, root included.
    #[inline(always)]
    pub fn wire(&self) -> &[u8] {
        &self.folded[..self.len.min(MAX_NAME)]
    }

    /// Number of labels, root not counted.
    #[inline(always)]
    pub fn labels(&self) -> usize {
        self.labels
    }

    /// Octets on the wire, root included.
    #[inline(always)]
    pub fn wire_len(&self) -> usize {
        self.len
    }

    /// Where label `index` (from the left, its length octet) starts; for `index == labels()` the root.
    #[inline(always)]
    pub fn start(&self, index: usize) -> usize {
        self.starts.get(index).map_or(self.len, |start| usize::from(*start))
    }

    /// Label `index` from the left with its length octet; empty past the end.
    #[inline(always)]
    pub fn label(&self, index: usize) -> &[u8] {
        self.span(index, index.saturating_add(1))
    }

    /// Labels `from..to` with their length octets, without a root.
    #[inline(always)]
    pub fn span(&self, from: usize, to: usize) -> &[u8] {
        if to > self.labels {
            return &[];
        }
        self.folded.get(self.start(from)..self.start(to)).unwrap_or(&[])
    }

    /// Everything from label `index` to the root, root included.
    #[inline(always)]
    pub fn tail(&self, index: usize) -> &[u8] {
        self.wire().get(self.start(index)..).unwrap_or(&[])
    }

    /// If the name lies at or below `suffix` (wire format, root included): how many labels stand before it.
    #[inline(always)]
    pub fn below(&self, suffix: &[u8], suffix_labels: usize) -> Option<usize> {
        let above = self.labels.checked_sub(suffix_labels)?;
        (self.tail(above) == suffix).then_some(above)
    }
}

/// Copies `source` in lower case, eight octets at a time. Length octets are at most 63 and so are never letters: the
/// whole name is folded without looking at its labels.
#[inline(always)]
fn fold(source: &[u8], target: &mut [u8; FOLDED]) {
    let (words, rest) = source.as_chunks::<8>();
    let (places, _) = target.as_chunks_mut::<8>();
    for (word, place) in words.iter().zip(places.iter_mut()) {
        *place = lower(u64::from_le_bytes(*word)).to_le_bytes();
    }
    if let Some(place) = places.get_mut(words.len()) {
        for (from, to) in rest.iter().zip(place.iter_mut()) {
            *to = from.to_ascii_lowercase();
        }
    }
}

/// Lower-cases the ASCII letters of eight octets at once. Bit 7 of each octet says "an upper-case letter": it is set
/// where adding carries past `A - 1` but not past `Z`; moved to bit 5 it is the difference between the cases.
#[inline(always)]
fn lower(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let low = word & (0x7f * ONES);
    let at_least_a = low + (0x80 - b'A' as u64) * ONES;
    let above_z = low + (0x7f - b'Z' as u64) * ONES;
    let upper = (at_least_a ^ above_z) & !word & (0x80 * ONES);
    word | (upper >> 2)
}

/// A label from text, lower-cased and with its length octet.
///
/// # Errors
/// [`NameError::Empty`] or [`NameError::Label`] when it has none or more than 63 octets.
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

/// A name from text (`web.cluster.local`, a trailing dot allowed) to wire format in lower case, root included.
///
/// # Errors
/// Says which rule of RFC 1035 section 2.3.4 the text breaks.
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

/// Labels on the wire as text, without a trailing dot; octets that a host name cannot hold are written `\DDD` (RFC 1035
/// section 5.1).
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
    fn every_octet_folds_as_ascii_does() {
        for octet in 0..=255u8 {
            let folded = lower(u64::from_le_bytes([octet; 8]));
            assert_eq!(folded.to_le_bytes(), [octet.to_ascii_lowercase(); 8]);
        }
    }

    #[test]
    fn names_at_the_limits() {
        let cases: &[(&str, Vec<u8>, Result<usize, NameError>)] = &[
            ("the root", vec![0], Ok(0)),
            ("a label of 63 octets", [&[63][..], &[b'a'; 63], &[0]].concat(), Ok(1)),
            ("a label of 64 octets", [&[64][..], &[b'a'; 64], &[0]].concat(), Err(NameError::Label)),
            ("a pointer", vec![0xc0, 0x0c], Err(NameError::Label)),
            ("127 labels, 255 octets", [[1, b'a'].repeat(127), vec![0]].concat(), Ok(127)),
            ("128 labels, 257 octets", [[1, b'a'].repeat(128), vec![0]].concat(), Err(NameError::Long)),
            ("256 octets", [[1, b'a'].repeat(126), vec![2, b'a', b'a', 0]].concat(), Err(NameError::Long)),
            ("no root", vec![1, b'a'], Err(NameError::Short)),
            ("nothing", vec![], Err(NameError::Short)),
        ];
        for (case, wire, expected) in cases {
            assert_eq!(Name::parse(wire, 0).map(|name| name.labels()), *expected, "{case}");
        }
    }

    #[test]
    fn text_and_wire_are_each_others_inverse() {
        for text in ["", "a", "web.cluster.local", "_http._tcp.api"] {
            assert_eq!(text_of(&name_from_text(text).unwrap()), text);
        }
        assert_eq!(name_from_text("Web.").unwrap().as_ref(), b"\x03web\0");
        assert_eq!(name_from_text("a..b"), Err(NameError::Empty));
        assert_eq!(text_of(b"\x03a.b\0"), "a\\046b");
    }
}
