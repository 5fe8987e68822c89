//! The histogram that all modules use for durations and sizes.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A histogram with `N` upper bounds, which are inclusive. The caller passes the bounds, because they are constants.
/// Only one thread may write at a time, so an observation is two loads and two stores. Any thread may read.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    buckets: [AtomicU64; N],
    above: AtomicU64,
    sum: AtomicU64,
}

/// The counts at one point in time.
#[derive(Clone, Copy, Debug)]
pub struct HistogramCounts<const N: usize> {
    /// Observations by bound.
    pub buckets: [u64; N],
    /// Observations above the largest bound.
    pub above: u64,
    /// Sum of all observations, in the unit of the bounds.
    pub sum: u64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Histogram<N> {
        let buckets = std::array::from_fn(|_| AtomicU64::default());
        Histogram { buckets, above: AtomicU64::default(), sum: AtomicU64::default() }
    }
}

impl<const N: usize> Default for HistogramCounts<N> {
    fn default() -> HistogramCounts<N> {
        HistogramCounts { buckets: [0; N], above: 0, sum: 0 }
    }
}

impl<const N: usize> Histogram<N> {
    /// Counts `times` observations of the same value.
    #[inline(always)]
    pub fn observe(&self, bounds: &[u64; N], value: u64, times: u64) {
        let bucket = bounds.iter().take_while(|bound| **bound < value).count();
        add(self.buckets.get(bucket).unwrap_or(&self.above), times);
        add(&self.sum, value.wrapping_mul(times));
    }

    /// Reads the counts.
    pub fn counts(&self) -> HistogramCounts<N> {
        HistogramCounts {
            buckets: std::array::from_fn(|bucket| self.buckets[bucket].load(Relaxed)),
            above: self.above.load(Relaxed),
            sum: self.sum.load(Relaxed),
        }
    }
}

impl<const N: usize> HistogramCounts<N> {
    /// Adds the counts of another thread.
    pub fn add(&mut self, other: &HistogramCounts<N>) {
        for (count, other) in self.buckets.iter_mut().zip(&other.buckets) {
            *count += other;
        }
        self.above += other.above;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

/// Adds to a counter that only the calling thread writes.
#[inline(always)]
pub(crate) fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(more), Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::default();
        for value in [0, 10, 11, 20, 21, 1000] {
            histogram.observe(&[10, 20], value, 2);
        }
        let HistogramCounts { buckets, above, sum } = histogram.counts();
        assert_eq!((buckets, above, sum), ([4, 4], 4, 2 * 1062));
    }
}
