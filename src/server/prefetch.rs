//! Fetches from memory what the answers to a batch will read, so that they wait for it once and not one by one.
//!
//! In a large cluster, nearly every answer reads memory that is in no cache: a slot of the table, the Service that it
//! leads to, and that Service's name, each at an address that the one before contains. A wait for memory is as long as
//! hundreds of instructions. With several questions in hand, the first of these reads is started for all of them, then
//! the second, then the third; the memory serves them side by side. `docs/performance.md` has the measurements.
#![allow(unsafe_code)]

use std::net::IpAddr;

use crate::answer::first_lookup;
use crate::zone::{Caller, Zone};

/// Number of questions whose reads overlap.
pub const GROUP: usize = 16;
/// A cache line in octets.
const LINE: usize = 64;

/// Fetches what the answers to the first [`GROUP`] of these messages will read first.
#[inline]
pub fn fetch<'m>(zone: &Zone, messages: impl Iterator<Item = (IpAddr, &'m [u8])>) {
    for (from, message) in messages.take(GROUP) {
        if let Some(hash) = first_lookup(zone, Caller::Address(from), message) {
            prefetch(zone.likely_rows(hash));
        }
    }
}

/// Starts to fetch values into the caches, without waiting for them.
#[inline(always)]
fn prefetch<T>(values: &[T]) {
    let place = values.as_ptr().cast::<u8>();
    for offset in (0..size_of_val(values)).step_by(LINE) {
        let place = place.wrapping_add(offset);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch is a hint. It changes no memory, and it cannot fail, whatever the address.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(place.cast());
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        unsafe {
            std::arch::asm!("prfm pldl1keep, [{}]", in(reg) place, options(nostack, readonly, preserves_flags));
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let _ = place;
    }
}
