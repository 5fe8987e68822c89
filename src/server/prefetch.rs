//! Fetches from memory what the answers to a batch will read, so that they wait for it once and not one by one.
//!
//! In a large cluster, the row of the table that an answer reads is rarely in a cache, and waiting for it takes as long as
//! hundreds of instructions. With several questions in hand, the reads of all their rows start before the first answer,
//! and the memory serves them side by side. `docs/performance.md` has the measurements.
#![allow(unsafe_code)]

use crate::answer::first_lookup;
use crate::zone::Zone;

/// Number of questions whose reads overlap.
pub const GROUP: usize = 16;
/// A cache line in octets.
const LINE: usize = 64;

/// Fetches what the answers to the first [`GROUP`] of these messages will read first.
#[inline]
pub fn fetch<'m>(zone: &Zone, messages: impl Iterator<Item = &'m [u8]>) {
    for message in messages.take(GROUP) {
        if let Some(hash) = first_lookup(zone, message) {
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
