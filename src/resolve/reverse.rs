//! Reverse names: `4.3.2.1.in-addr.arpa` (RFC 1035 section 3.5) and the nibbles of `ip6.arpa` (RFC 3596 section 2.5).

use super::trace::{Step, StepResult, Trace};
use super::{Node, Outcome, Search, Space};
use crate::wire::Name;
use crate::zone::{Cidr, address_of};

/// The address block that a reverse name denotes.
struct Block {
    /// First address as 128 bits, with IPv4 mapped into IPv6.
    first: u128,
    /// Number of bits fixed by the name, out of 128.
    prefix: u8,
    /// Number of bits per label.
    step: usize,
    /// Number of leading labels that are not part of an address.
    rest: usize,
}

impl Block {
    fn parse(name: &Name) -> Option<Block> {
        let labels = name.labels().checked_sub(2)?;
        let (mut first, step, digits) = match name.tail(labels) {
            b"\x07in-addr\x04arpa\0" => (0xffff_0000_0000, 8, octet as fn(&[u8]) -> Option<u8>),
            b"\x03ip6\x04arpa\0" => (0, 4, nibble as fn(&[u8]) -> Option<u8>),
            _ => return None,
        };
        let start = if step == 8 { 96 } else { 0 };
        let (mut prefix, mut rest) = (start, labels);
        while rest > 0 && prefix < 128 {
            let Some(value) = digits(name.label(rest - 1)) else { break };
            prefix += step;
            first |= u128::from(value) << (128 - prefix);
            rest -= 1;
        }
        Some(Block { first, prefix: prefix as u8, step, rest })
    }

    fn last(&self) -> u128 {
        self.first | u128::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0)
    }
}

/// Parses a decimal octet. Leading zeros are rejected, so that every address has one spelling only.
fn octet(label: &[u8]) -> Option<u8> {
    let digits = label.get(1..)?;
    if digits.len() > 3 || digits.is_empty() || (digits.len() > 1 && digits.first() == Some(&b'0')) {
        return None;
    }
    digits.iter().try_fold(0u8, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

fn nibble(label: &[u8]) -> Option<u8> {
    match label {
        [1, digit @ b'0'..=b'9'] => Some(digit - b'0'),
        [1, digit @ b'a'..=b'f'] => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl<'z, T: Trace> Search<'_, 'z, T> {
    /// Resolves a reverse name. Returns `None` for any other name.
    #[inline(never)]
    pub(super) fn reverse_name(self) -> Option<Outcome<'z>> {
        // For all other names, this comparison is the only cost.
        if !self.name.wire().ends_with(b"\x04arpa\0") {
            return None;
        }
        let block = Block::parse(self.name)?;
        Some(self.block(&block))
    }

    fn block(self, block: &Block) -> Outcome<'z> {
        let (zone, caller) = (self.zone(), self.caller);
        if !zone.synced {
            return Outcome::NotReady;
        }
        let whole = block.prefix == 128;
        self.trace.probe();
        let owned = zone.has_owner_within(block.first, block.last(), || caller.namespace());
        let asked = Cidr::new(block.first, block.prefix);
        let is_inside = |cidr: &&Cidr| cidr.prefix() <= block.prefix && cidr.overlaps(&asked);
        let inside = zone.settings.reverse.iter().find(is_inside).or_else(|| {
            // These addresses have no names on the public internet, but a stub zone may have some.
            let empty = || zone.settings.empty_zones.iter().find(is_inside);
            if owned || zone.settings.is_stub(self.name) { None } else { empty() }
        });
        self.trace.note(|| {
            let what = if whole { "a Service or ready endpoint with address" } else { "addresses in the block at" };
            let result = match (owned, inside) {
                (true, _) => StepResult::Found("an address of the cluster".to_owned()),
                (false, Some(_)) => StepResult::Skipped(
                    "none, but inside --reverse-cidr or a private block, so not forwarded".to_owned(),
                ),
                (false, None) => StepResult::Nothing,
            };
            Step::new("reverse name", format!("{what} {}", address_of(block.first)), result)
        });
        let space = Space::Reverse { above: inside.map_or(0, |cidr| zone_cut(cidr, block, self.name)) };
        match (owned, block.rest) {
            (true, 0) if whole => Outcome::Found(Node::Reverse(address_of(block.first)), space),
            (true, 0) => Outcome::Found(Node::Empty, space),
            // No name exists below a complete address.
            (true, _) if whole => Outcome::Missing(Space::Reverse { above: block.rest }),
            _ if inside.is_some() => Outcome::Missing(space),
            _ => Outcome::NotOurs,
        }
    }
}

/// Returns the number of labels before the reverse zone of a `--reverse-cidr` block. If the block does not end on a
/// label boundary, its zone is the next longer name.
fn zone_cut(cidr: &Cidr, block: &Block, name: &Name) -> usize {
    let start = if block.step == 8 { 96 } else { 0 };
    let labels = usize::from(cidr.prefix()).saturating_sub(start).div_ceil(block.step);
    (name.labels() - 2).saturating_sub(labels)
}
