//! `answer()` alone, over clusters of 100, 10,000 and 100,000 Services: `cargo bench --bench answer`.
#![allow(clippy::expect_used, missing_docs)]

mod cluster;

use std::hint::black_box;
use std::time::Instant;

use callsign::answer::{Limit, Scratch, answer};
use callsign::server::prefetch;
use callsign::zone::Caller;
use criterion::{Criterion, criterion_group, criterion_main};

fn bench(criterion: &mut Criterion) {
    let mut reply = vec![0; 4096];
    let mut scratch = Scratch::new(0);
    let caller = Caller::Address([127, 0, 0, 1].into());
    for services in [100, 10_000, 100_000] {
        let zone = cluster::zone(services);
        let mut group = criterion.benchmark_group(format!("{services} services"));
        for (case, name, qtype, edns) in cluster::QUESTIONS {
            let query = cluster::query(name, *qtype, *edns);
            group.bench_function(*case, |bencher| {
                bencher.iter(|| answer(&zone, caller, black_box(&query), Limit::Datagram, &mut scratch, &mut reply));
            });
        }
        // A different Service each time, in random order, so that the CPU caches miss.
        let queries: Vec<Vec<u8>> = (0..services.min(20_000))
            .map(|n| n.wrapping_mul(2_654_435_761) % services)
            .map(|n| cluster::query(&format!("service-{n}.namespace-{}.svc.cluster.local", n % 100), 1, true))
            .collect();
        let mut at = 0;
        group.bench_function("hit, a different Service each time", |bencher| {
            bencher.iter(|| {
                at = (at + 1) % queries.len();
                answer(&zone, caller, black_box(&queries[at]), Limit::Datagram, &mut scratch, &mut reply)
            });
        });
        // The same questions as a UDP worker has them: several at once. criterion shows the time of one.
        for size in [1, 4, 16, 64] {
            group.bench_function(format!("hit, a different Service each time, {size} at once"), |bencher| {
                bencher.iter_custom(|count| {
                    let start = Instant::now();
                    for _ in 0..count.div_ceil(size as u64) {
                        at = (at + size) % (queries.len() - size);
                        let batch = black_box(&queries[at..at + size]);
                        prefetch::fetch(&zone, batch.iter().map(|query| &**query));
                        for query in batch {
                            black_box(answer(&zone, caller, query, Limit::Datagram, &mut scratch, &mut reply));
                        }
                    }
                    start.elapsed()
                });
            });
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
