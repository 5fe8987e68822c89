//! Metrics in the OpenMetrics text format, read from the counters on each scrape.

use std::collections::HashMap;
use std::fmt::{Error, Write as _};
use std::sync::atomic::Ordering::Relaxed;

use hyper::header::ACCEPT;
use hyper::{HeaderMap, Response, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::Admin;
use super::body::Body;
use super::encode::{counter, counter_of, gauge, histogram};
use super::forwarding::ForwardingMetrics;
use super::http::typed;
use crate::answer::ZoneClass;
use crate::cluster::publish::PUBLISH_BOUNDS;
use crate::lifecycle::Phase;
use crate::server::{
    CounterValues, DURATION_BOUNDS, EncryptedStatus, RCODES, SIZE_BOUNDS, TYPES, UNSENT, ZONE_CLASSES,
};

/// Encodes all metrics as text: some are only `for_operators`.
pub(super) fn render(admin: &Admin, for_operators: bool) -> Result<String, Error> {
    let mut out = String::with_capacity(16 * 1024);
    let mut registry = Registry::default();
    registry.sub_registry_with_prefix(&admin.prefix).register_collector(Box::new(Scrape::new(admin, for_operators)));
    registry.register_collector(Box::new(Process));
    text::encode(&mut out, &registry)?;
    Ok(out)
}

/// Returns the metrics in the format that the client accepts: OpenMetrics if it asks for that, as Prometheus does, else
/// the text format that every client reads.
pub(super) fn negotiated(text: String, headers: &HeaderMap) -> Response<Body> {
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    if accepted.into_iter().any(|value| value.contains("application/openmetrics-text")) {
        return typed(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text);
    }
    typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", prometheus_text(&text))
}

/// Converts OpenMetrics to the older text format, in which a counter's name includes its suffix and the types are fewer
/// (Prometheus documentation, "Exposition formats").
fn prometheus_text(text: &str) -> String {
    let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let kinds: HashMap<&str, &str> = kinds.collect();
    let mut out = String::with_capacity(text.len() + 4096);
    for line in text.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(what @ ("HELP" | "TYPE")), Some(name), Some(rest)) => {
                let is_counter = kinds.get(name) == Some(&"counter");
                let suffix = if is_counter && !name.ends_with("_total") { "_total" } else { "" };
                let rest = if what == "TYPE" && rest == "unknown" { "untyped" } else { rest };
                let _ = writeln!(out, "# {what} {name}{suffix} {rest}");
            }
            (Some("#"), ..) => {}
            _ => {
                let _ = writeln!(out, "{line}");
            }
        }
    }
    out
}

/// The values of one scrape, copied so that they are consistent.
#[derive(Debug)]
pub(super) struct Scrape {
    domain: String,
    pub(super) servers: Vec<(String, &'static str, CounterValues)>,
    status: crate::cluster::publish::SourceStatus,
    size: (usize, usize, usize),
    serial: u32,
    tcp: usize,
    encrypted: Option<EncryptedMetrics>,
    uptime: f64,
    after_sigterm: u64,
    forwarding: Option<ForwardingMetrics>,
}

/// Metrics of encrypted transports.
#[derive(Debug)]
struct EncryptedMetrics {
    open: usize,
    not_after: i64,
    rejected: u64,
    handshakes_failed: u64,
}

impl Scrape {
    fn new(admin: &Admin, for_operators: bool) -> Scrape {
        let zone = admin.table.load();
        let mut servers: Vec<(String, &'static str, CounterValues)> = Vec::new();
        for listener in &admin.listeners {
            let snapshot = listener.counters.snapshot();
            // Workers that share an address are reported as one server.
            match servers
                .iter_mut()
                .find(|(server, transport, _)| *server == listener.server && *transport == listener.transport)
            {
                Some((_, _, sum)) => sum.add(&snapshot),
                None => servers.push((listener.server.clone(), listener.transport, snapshot)),
            }
        }
        let after_sigterm = match *admin.phase.borrow() {
            Phase::LameDuck { queries: before } => {
                let now: u64 = admin.listeners.iter().map(|listener| listener.counters.queries()).sum();
                now.saturating_sub(before)
            }
            Phase::Serving | Phase::Draining => 0,
        };
        Scrape {
            after_sigterm,
            domain: zone.settings.domains.first().map(|domain| format!("{}.", domain.text())).unwrap_or_default(),
            servers,
            status: admin.status.status(),
            size: zone.size(),
            serial: zone.soa.serial(),
            tcp: admin.tcp.open(),
            encrypted: admin.encrypted.as_ref().map(|EncryptedStatus { clients, stats }| EncryptedMetrics {
                open: clients.open(),
                not_after: stats.not_after.load(Relaxed),
                rejected: stats.rejected.load(Relaxed),
                handshakes_failed: stats.handshakes_failed.load(Relaxed),
            }),
            uptime: admin.started.elapsed().as_secs_f64(),
            forwarding: admin.forwarding.clone().map(|cache| ForwardingMetrics {
                cache,
                coredns_names: admin.prefix == "coredns",
                for_operators,
            }),
        }
    }

    /// Returns the value of the `zone` label.
    fn zone(&self, zone_class: ZoneClass) -> &str {
        match zone_class {
            ZoneClass::Cluster => &self.domain,
            ZoneClass::Reverse => "arpa.",
            ZoneClass::Short => "short",
            ZoneClass::Other => ".",
        }
    }

    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let help = "DNS requests, by server, zone, transport, family and type";
        let mut family = encoder.encode_descriptor("dns_requests", help, None, MetricType::Counter)?;
        for (server, proto, counts) in &self.servers {
            for (of_family, by_zone_class) in ["1", "2"].iter().zip(&counts.requests) {
                for (zone_class, by_type) in ZONE_CLASSES.iter().zip(by_zone_class) {
                    for ((_, qtype), count) in TYPES.iter().zip(by_type).filter(|(_, count)| **count > 0) {
                        let labels = [
                            ("server", server.as_str()),
                            ("zone", self.zone(*zone_class)),
                            ("proto", proto),
                            ("family", of_family),
                            ("type", qtype),
                        ];
                        counter_of(&mut family, &labels, *count)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn responses(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut family =
            encoder.encode_descriptor("dns_responses", "DNS responses, by rcode", None, MetricType::Counter)?;
        for (server, proto, counts) in &self.servers {
            for ((_, rcode), count) in RCODES.iter().zip(&counts.responses).filter(|(_, count)| **count > 0) {
                counter_of(&mut family, &[("server", server.as_str()), ("proto", proto), ("rcode", rcode)], *count)?;
            }
        }
        Ok(())
    }

    fn histograms(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let help =
            "Time from receiving a query to sending its reply; queries of a batch all count the time of the batch";
        self.by_server(encoder, "dns_request_duration_seconds", help, |family, labels, counts| {
            histogram(family, labels, &DURATION_BOUNDS, 1e9, &counts.durations)
        })?;
        self.by_server(encoder, "dns_request_size_bytes", "Size of requests", |family, labels, counts| {
            histogram(family, labels, &SIZE_BOUNDS, 1.0, &counts.request_sizes)
        })?;
        self.by_server(encoder, "dns_response_size_bytes", "Size of responses", |family, labels, counts| {
            histogram(family, labels, &SIZE_BOUNDS, 1.0, &counts.response_sizes)
        })
    }

    fn by_server(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        encode: impl Fn(&mut MetricEncoder<'_>, &[(&str, &str); 2], &CounterValues) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (server, proto, counts) in &self.servers {
            encode(&mut family, &[("server", server.as_str()), ("proto", proto)], counts)?;
        }
        Ok(())
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let encoder = &mut encoder;
        self.requests(encoder)?;
        self.responses(encoder)?;
        self.histograms(encoder)?;
        let sum = |of: fn(&CounterValues) -> u64| self.servers.iter().map(|(_, _, counts)| of(counts)).sum();
        counter(
            encoder,
            "dns_dropped",
            "Messages without a reply: those without a complete header, and replies",
            sum(|counts| counts.dropped),
        )?;
        let help = "Replies over UDP that were truncated or dropped because of --rate-limit";
        counter(encoder, "dns_rate_limited", help, sum(|counts| counts.limited))?;
        let help = "Queries of the busiest clients over UDP without an answer, because the server was overloaded";
        counter(encoder, "dns_shed", help, sum(|counts| counts.shed))?;
        let help = "Replies over UDP that could not be sent, by reason; full: the send buffer had no room";
        let mut unsent = encoder.encode_descriptor("dns_unsent", help, None, MetricType::Counter)?;
        for (index, reason) in UNSENT.iter().enumerate() {
            let count = self.servers.iter().map(|(_, _, counts)| counts.unsent[index]).sum();
            counter_of(&mut unsent, &[("reason", *reason)], count)?;
        }
        let help = "Queries since SIGTERM: their clients had not yet moved to another server";
        counter(encoder, "queries_after_sigterm", help, self.after_sigterm)?;
        gauge(encoder, "tcp_connections", "Open TCP connections", self.tcp as f64)?;
        if let Some(encrypted) = &self.encrypted {
            let help = "Open connections of encrypted transports";
            gauge(encoder, "encrypted_connections", help, encrypted.open as f64)?;
            let help = "Handshakes of encrypted transports that failed or timed out";
            counter(encoder, "encrypted_handshake_failures", help, encrypted.handshakes_failed)?;
            let help = "Expiry of the certificate, in seconds since 1970";
            gauge(encoder, "tls_certificate_not_after_timestamp_seconds", help, encrypted.not_after as f64)?;
            let help = "Failed reloads of the certificate or key; the previous ones stay in use";
            counter(encoder, "tls_certificate_reload_failures", help, encrypted.rejected)?;
        }
        if let Some(forwarding) = &self.forwarding {
            forwarding.encode(encoder, sum(|counts| counts.cache_hits), sum(|counts| counts.stale))?;
        }
        let (services, endpoints, names) = self.size;
        gauge(encoder, "table_services", "Services in the table", services as f64)?;
        gauge(encoder, "table_endpoints", "Ready endpoints in the table", endpoints as f64)?;
        gauge(encoder, "table_names", "Addresses with a reverse name in the table", names as f64)?;
        gauge(encoder, "table_serial", "Serial of the SOA record", f64::from(self.serial))?;
        let status = &self.status;
        counter(encoder, "tables_published", "Tables published", status.published)?;
        counter(encoder, "objects_rejected", "Objects and annotations that were rejected", status.rejected)?;
        let help = "Time to build and publish a table";
        let mut family = encoder.encode_descriptor("publish_seconds", help, None, MetricType::Histogram)?;
        histogram::<0, _>(&mut family, &[], &PUBLISH_BOUNDS, 1e9, &status.publish.counts())?;
        let help = "Time from a change to the table that includes it, from its watch event or from its trigger";
        let name = "kubernetes_dns_programming_duration_seconds";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (from, times) in [("event", &status.from_event), ("trigger", &status.from_trigger)] {
            histogram(&mut family, &[("from", from)], &PUBLISH_BOUNDS, 1e9, &times.counts())?;
        }
        let (compared, differing) = status.compared;
        counter(encoder, "self_checks", "Comparisons of the stored objects with the API", compared)?;
        counter(encoder, "self_check_differences", "Objects that differed from the API", differing)?;
        let saved = status.saved_since.map_or(0.0, |since| since.elapsed().as_secs_f64());
        gauge(
            encoder,
            "saved_facts_served_seconds",
            "Time for which saved facts have been served; 0 if none are",
            saved,
        )?;
        let mut age = encoder.encode_descriptor(
            "source_age_seconds",
            "Time since the last message from the source, by resource",
            None,
            MetricType::Gauge,
        )?;
        for (part, heard) in &status.heard {
            let seconds = heard.elapsed().as_secs_f64();
            age.encode_family(&[("part", part.as_str())])?.encode_gauge(&seconds)?;
        }
        gauge(encoder, "source_in_trouble", "Resources that are failing", status.failures.len() as f64)?;
        gauge(encoder, "uptime_seconds", "Time since the process started", self.uptime)
    }
}

/// The process metrics that Prometheus client libraries export.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let mut gauge = |name: &str, help: &str, value: Option<f64>| match value {
            Some(value) => encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value),
            None => Ok(()),
        };
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kilobytes = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
        };
        gauge("process_resident_memory_bytes", "Resident memory", kilobytes("VmRSS:"))?;
        gauge("process_virtual_memory_bytes", "Virtual memory", kilobytes("VmSize:"))?;
        gauge(
            "process_threads",
            "Threads",
            status.lines().find_map(|line| line.strip_prefix("Threads:")?.trim().parse().ok()),
        )?;
        let descriptors = std::fs::read_dir("/proc/self/fd").map(|entries| entries.count() as f64).ok();
        gauge("process_open_fds", "Open file descriptors", descriptors)?;
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // Fields 14 and 15 of proc(5), in ticks of 1/100 s. They are counted from the end of the process name, which
        // can contain spaces.
        let ticks = stat.rsplit_once(')').and_then(|(_, rest)| {
            let mut fields = rest.split_whitespace().skip(11);
            Some(fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?)
        });
        if let Some(ticks) = ticks {
            let mut cpu = encoder.encode_descriptor(
                "process_cpu_seconds",
                "CPU time, user and system",
                None,
                MetricType::Counter,
            )?;
            cpu.encode_counter::<[(&str, &str); 0], _, u64>(&(ticks / 100.0), None)?;
        }
        Ok(())
    }
}
