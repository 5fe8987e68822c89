//! Metrics of the forward cache and of the upstreams. The cache metrics have the same names as in CoreDNS, so that its
//! dashboards work. With `--metrics-prefix coredns`, the histogram of upstream latency does too.

use std::fmt::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::encode::{counter, counter_of, gauge, histogram};
use crate::forward::{ForwardCache, RCODES, TIME_BOUNDS, UpstreamStats};

/// Forwarding metrics of one scrape.
pub(super) struct ForwardingMetrics {
    pub(super) cache: Arc<ForwardCache>,
    /// Whether the latency histogram is named as in CoreDNS, too.
    pub(super) coredns_names: bool,
    /// Whether the client may see what is for operators only.
    pub(super) for_operators: bool,
}

impl std::fmt::Debug for ForwardingMetrics {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("ForwardingMetrics")
    }
}

impl ForwardingMetrics {
    /// Encodes the metrics. The transports count `hits`, the cache hits, and `stale`, those of them that were served
    /// stale.
    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>, hits: u64, stale: u64) -> Result<(), Error> {
        let counts = &self.cache.counts;
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Relaxed);
        let stale = stale + read(&counts.stale);
        let (entries, octets) = self.cache.size();
        gauge(encoder, "cache_entries", "Replies in the forward cache", entries as f64)?;
        gauge(encoder, "cache_bytes", "Bytes used by the forward cache", octets as f64)?;
        for (name, help, value) in [
            ("cache_hits", "Cache hits", hits),
            ("cache_misses", "Cache misses", read(&counts.misses)),
            ("cache_served_stale", "Stale replies served", stale),
            ("cache_prefetch", "Prefetches of popular replies before they expired", read(&counts.prefetches)),
            (
                "forward_private_addresses",
                "Replies with private addresses for public names, with --rebind-protection",
                read(&counts.rebinds),
            ),
            ("forward_joined", "Queries that joined an identical query in flight", read(&counts.joined)),
            (
                "forward_max_concurrent_rejects",
                "Queries rejected because too many were in flight or waiting",
                read(&counts.rejected),
            ),
        ] {
            counter(encoder, name, help, value)?;
        }
        let help = "Queries refused because a client's or a zone's share of the upstreams' work was used up";
        let mut family = encoder.encode_descriptor("forward_refused", help, None, MetricType::Counter)?;
        for ((namespace, share), count) in self.cache.busiest.refusals() {
            counter_of(&mut family, &[("namespace", &*namespace), ("share", share.as_str())], count)?;
        }
        let upstreams = self.cache.upstreams();
        let mut family = |name: &str, help: &str, of: fn(&UpstreamStats) -> u64| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            upstreams.iter().try_for_each(|stats| counter_of(&mut family, &[("to", &stats.server)], of(stats)))
        };
        family("upstream_requests", "Queries sent, by upstream", |stats| stats.requests.load(Relaxed))?;
        // It would tell whoever forges replies whether a port is in use.
        if self.for_operators {
            family("upstream_foreign_replies", "Messages that matched no query in flight: late or forged", |stats| {
                stats.mismatched.load(Relaxed)
            })?;
        }
        let help = "Queries without a usable reply, by upstream and reason";
        let mut family = encoder.encode_descriptor("upstream_failures", help, None, MetricType::Counter)?;
        for stats in &upstreams {
            for (reason, failures) in
                [("timeout", &stats.timeouts), ("network", &stats.errors), ("invalid", &stats.invalid)]
            {
                counter_of(&mut family, &[("to", stats.server.as_str()), ("reason", reason)], read(failures))?;
            }
        }
        let help = "Replies, by upstream and rcode";
        let mut family = encoder.encode_descriptor("upstream_responses", help, None, MetricType::Counter)?;
        for stats in &upstreams {
            let names = RCODES.iter().map(|(_, name)| *name).chain(["other"]);
            for (rcode, replies) in names.zip(&stats.responses).filter(|(_, replies)| read(replies) > 0) {
                counter_of(&mut family, &[("to", stats.server.as_str()), ("rcode", rcode)], read(replies))?;
            }
        }
        let mut family = encoder.encode_descriptor(
            "upstream_up",
            "1 if the upstream is in use; 0 if it does not reply and is used last, or is in a loop and not used",
            None,
            MetricType::Gauge,
        )?;
        for stats in &upstreams {
            let up = !stats.down.load(Relaxed) && !stats.looping.load(Relaxed);
            family.encode_family(&[("to", stats.server.as_str())])?.encode_gauge(&f64::from(u8::from(up)))?;
        }
        let name =
            if self.coredns_names { "proxy_request_duration_seconds" } else { "upstream_request_duration_seconds" };
        let help = "Time from sending a query to receiving the upstream's reply";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for stats in &upstreams {
            let labels = [("proxy_name", "forward"), ("to", stats.server.as_str())];
            histogram(&mut family, &labels, &TIME_BOUNDS, 1e6, &stats.times.counts())?;
        }
        Ok(())
    }
}
