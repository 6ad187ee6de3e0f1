//! A fixed set of storms, and that a storm can be played again.

use sim::scenarios::settling;

fn play(seeds: std::ops::Range<u64>) {
    let mut broken = Vec::new();
    for seed in seeds {
        let report = settling::run(seed).unwrap();
        broken.extend(report.findings.into_iter().map(|finding| format!("seed {seed}: {finding}")));
    }
    assert!(
        broken.is_empty(),
        "play one again with `cargo run -p sim --bin storm -- --seed N`:\n{broken:#?}"
    );
}

// Several tests, so that they run side by side.

#[test]
fn invoices_settle_rightly_in_storms_0_to_9() {
    play(0..10);
}

#[test]
fn invoices_settle_rightly_in_storms_10_to_19() {
    play(10..20);
}

#[test]
fn invoices_settle_rightly_in_storms_20_to_29() {
    play(20..30);
}

#[test]
fn the_same_seed_goes_the_same_way() {
    for seed in [3, 12] {
        let (first, second) = (settling::run(seed).unwrap(), settling::run(seed).unwrap());
        assert_eq!(first, second);
    }
    assert_ne!(settling::run(1).unwrap().trace, settling::run(2).unwrap().trace);
}
