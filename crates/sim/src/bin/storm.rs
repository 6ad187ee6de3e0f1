//! Plays storms from seeds and prints what broke, with the one command that plays it again.
//!
//! ```text
//! cargo run -p sim --bin storm -- --seed 7
//! cargo run -p sim --bin storm -- --seeds 0..1000
//! ```

use std::ops::Range;
use std::process::ExitCode;

use clap::Parser;
use sim::scenarios::settling;

/// Plays storms from seeds; exits with 1 when a promise was broken.
#[derive(Parser)]
struct Options {
    /// One seed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Seeds from A up to, and without, B.
    #[arg(long, value_name = "A..B", value_parser = range)]
    seeds: Option<Range<u64>>,
    /// Plays each seed twice and compares the traces.
    #[arg(long)]
    twice: bool,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("expected A..B")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    Ok(number(from)?..number(to)?)
}

#[expect(clippy::print_stdout, reason = "this is a program, and the report is its result")]
fn main() -> std::io::Result<ExitCode> {
    let options = Options::parse();
    let seeds = match (options.seed, options.seeds) {
        (Some(seed), _) => seed..seed.saturating_add(1),
        (None, Some(seeds)) => seeds,
        (None, None) => 0..20,
    };
    let mut broken = 0_u64;
    for seed in seeds {
        let mut report = settling::run(seed)?;
        if options.twice && settling::run(seed)?.trace != report.trace {
            report.findings.push("the same seed went another way the second time".to_owned());
        }
        println!("seed {seed}: {} trace {}", report.summary, report.trace);
        for finding in &report.findings {
            println!("  BROKEN {finding}");
        }
        if !report.findings.is_empty() {
            broken += 1;
            println!("  again: cargo run -p sim --bin storm -- --seed {seed}");
        }
    }
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
