//! Metrics of what is kept of upstreams, and of the upstreams themselves. The cache's names are those of the usual cluster
//! DNS, so that its dashboards find them; of the rest, with `--metrics-prefix coredns`, so is the histogram of times.

use std::fmt::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::metrics::{Scrape, counter_of, histogram};
use crate::forward::{ForwardCache, RCODES, TIME_BOUNDS, UpstreamStats};

/// What one scrape tells of forwarding.
pub(super) struct ForwardingMetrics {
    pub(super) cache: Arc<ForwardCache>,
    /// Whether names are those of the usual cluster DNS.
    pub(super) usual: bool,
}

impl std::fmt::Debug for ForwardingMetrics {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("ForwardingMetrics")
    }
}

impl ForwardingMetrics {
    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>, scrape: &Scrape) -> Result<(), Error> {
        let counts = &self.cache.counts;
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Relaxed);
        let (hits, stale) = scrape.servers.iter().fold((0, read(&counts.stale)), |(hits, stale), (_, _, counts)| {
            (hits + counts.cache_hits, stale + counts.stale)
        });
        let (entries, octets) = self.cache.size();
        scrape.gauge(encoder, "cache_entries", "Answers of upstreams that are kept", entries as f64)?;
        scrape.gauge(encoder, "cache_bytes", "Octets that they take", octets as f64)?;
        for (name, help, value) in [
            ("cache_hits", "Questions answered from what is kept", hits),
            ("cache_misses", "Questions that nothing kept answered", read(&counts.misses)),
            ("cache_served_stale", "Answers past their time, for want of fresher ones", stale),
            ("cache_prefetch", "Popular answers asked for again before they expired", read(&counts.prefetches)),
            ("forward_joined", "Questions that joined the same one in flight", read(&counts.joined)),
            (
                "forward_max_concurrent_rejects",
                "Questions turned away: too many in flight, or waiting",
                read(&counts.rejected),
            ),
        ] {
            scrape.counter(encoder, name, help, value)?;
        }
        let upstreams = self.cache.upstreams();
        let mut family = |name: &str, help: &str, of: fn(&UpstreamStats) -> u64| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            upstreams.iter().try_for_each(|stats| counter_of(&mut family, &[("to", &stats.server)], of(stats)))
        };
        family("upstream_requests", "Questions sent, by upstream", |stats| stats.requests.load(Relaxed))?;
        family("upstream_foreign_replies", "Messages that answered no question of ours: late, or forged", |stats| {
            stats.foreign.load(Relaxed)
        })?;
        let help = "Questions that an upstream gave no answer to, by reason";
        let mut family = encoder.encode_descriptor("upstream_failures", help, None, MetricType::Counter)?;
        for stats in &upstreams {
            for (reason, counter) in [("timeout", &stats.timeouts), ("network", &stats.errors), ("unfit", &stats.unfit)]
            {
                counter_of(&mut family, &[("to", stats.server.as_str()), ("reason", reason)], read(counter))?;
            }
        }
        let help = "Replies of upstreams, by rcode";
        let mut family = encoder.encode_descriptor("upstream_responses", help, None, MetricType::Counter)?;
        for stats in &upstreams {
            let names = RCODES.iter().map(|(_, name)| *name).chain(["other"]);
            for (rcode, counter) in names.zip(&stats.responses).filter(|(_, counter)| read(counter) > 0) {
                counter_of(&mut family, &[("to", stats.server.as_str()), ("rcode", rcode)], read(counter))?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "upstream_up",
            "1: asked in its turn; 0: asked last, for it does not reply, or not at all, for it asks us back",
            None,
            MetricType::Gauge,
        )?;
        for stats in &upstreams {
            let up = !stats.down.load(Relaxed) && !stats.looping.load(Relaxed);
            family.encode_family(&[("to", stats.server.as_str())])?.encode_gauge(&f64::from(u8::from(up)))?;
        }
        let name = if self.usual { "proxy_request_duration_seconds" } else { "upstream_request_duration_seconds" };
        let help = "Time from sending a question to an upstream to its reply";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        let bounds: Vec<f64> = TIME_BOUNDS.iter().map(|bound| *bound as f64 / 1e6).collect();
        for stats in &upstreams {
            let counts: Vec<u64> = stats.times.iter().map(read).collect();
            let labels = [("proxy_name", "forward"), ("to", stats.server.as_str())];
            histogram(&mut family, &labels, &bounds, &counts, read(&stats.time) as f64 / 1e6)?;
        }
        Ok(())
    }
}
