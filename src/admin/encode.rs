//! Encodes single metrics in the OpenMetrics text format.

use std::fmt::Error;

use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;

use crate::histogram::HistogramCounts;

pub(super) fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> Result<(), Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

pub(super) fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> Result<(), Error> {
    encoder
        .encode_descriptor(name, help, None, MetricType::Counter)?
        .encode_counter::<[(&str, &str); 0], _, u64>(&value, None)
}

/// Encodes one counter of a family.
pub(super) fn counter_of<const N: usize>(
    family: &mut MetricEncoder<'_>,
    labels: &[(&str, &str); N],
    count: u64,
) -> Result<(), Error> {
    family.encode_family(labels)?.encode_counter::<[(&str, &str); 0], _, u64>(&count, None)
}

/// Encodes one histogram of a family. Bounds and sum are divided by `unit`.
pub(super) fn histogram<const N: usize, const B: usize>(
    family: &mut MetricEncoder<'_>,
    labels: &[(&str, &str); N],
    bounds: &[u64; B],
    unit: f64,
    counts: &HistogramCounts<B>,
) -> Result<(), Error> {
    let bounds = bounds.iter().map(|bound| *bound as f64 / unit).chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(counts.buckets.iter().copied().chain([counts.above])).collect();
    let total = buckets.iter().map(|(_, count)| count).sum();
    let sum = counts.sum as f64 / unit;
    family.encode_family(labels)?.encode_histogram::<[(&str, &str); 0]>(sum, total, &buckets, None)
}
