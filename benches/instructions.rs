//! Instructions per answer, counted by callgrind: the same on every machine that runs the same binary.
//!
//! `cargo bench --bench instructions` runs itself under valgrind, once with few and once with many answers to each
//! question. The difference is the cost of an answer.
#![allow(clippy::expect_used, clippy::print_stdout, missing_docs)]

mod cluster;

use std::hint::black_box;
use std::process::Command;

use callsign::answer::{Limit, Scratch, answer};
use callsign::zone::Caller;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, work, question, rounds, ..] = arguments.as_slice()
        && work == "--work"
    {
        return run(question.parse().expect("an index"), rounds.parse().expect("a number"));
    }
    println!("{:32} {:>12}", "answer", "instructions");
    // Many rounds, because the cost of building the zone varies with the seeds of its maps.
    let per_round = |index: usize| Some((count(index, 101_000)? - count(index, 1000)?) / 100_000);
    let Some(overhead) = per_round(cluster::QUESTIONS.len()) else {
        return println!("valgrind is not installed or does not run");
    };
    for (index, (case, ..)) in cluster::QUESTIONS.iter().enumerate() {
        println!("{case:32} {:>12}", per_round(index).map_or(0, |all| all - overhead));
    }
}

fn run(question: usize, rounds: usize) {
    let zone = cluster::zone(1000);
    let mut reply = vec![0; 4096];
    let Some((_, name, qtype, edns)) = cluster::QUESTIONS.get(question) else {
        // The cost of a round without an answer.
        for _ in 0..rounds {
            black_box(Caller::Address([127, 0, 0, 1].into()));
            black_box(&mut reply);
            black_box(rounds);
        }
        return;
    };
    let query = cluster::query(name, *qtype, *edns);
    let mut scratch = Scratch::new(0);
    for _ in 0..rounds {
        let caller = Caller::Address([127, 0, 0, 1].into());
        black_box(answer(&zone, caller, black_box(&query), Limit::Datagram, &mut scratch, &mut reply));
    }
}

fn count(question: usize, rounds: usize) -> Option<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().ok()?)
        .args(["--work", &question.to_string(), &rounds.to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.lines().find_map(|line| line.split("Collected :").nth(1))?.trim().parse().ok()
}
