//! Holds the sentences of ARCHITECTURE.md that neither the compiler nor Cargo can hold. Each rule quotes
//! the sentence it enforces, so that neither can change without the other.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All Rust files below a folder, with their contents, in order.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// The rule's sentence has to stand in ARCHITECTURE.md; then its offenders are shown.
fn hold(sentence: &str, offenders: impl IntoIterator<Item = String>) {
    let architecture = read("ARCHITECTURE.md").split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(architecture.contains(sentence), "ARCHITECTURE.md no longer says: {sentence}");
    let offenders: Vec<String> = offenders.into_iter().collect();
    assert!(offenders.is_empty(), "{sentence}\n  but: {}", offenders.join("\n       "));
}

/// The names under `[dependencies]` of a package.
fn dependencies(package: &str) -> BTreeSet<String> {
    let manifest = read(&format!("crates/{package}/Cargo.toml"));
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap_or_default();
    section
        .lines()
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

fn among(package: &str, banned: &[&str]) -> Vec<String> {
    let has = dependencies(package);
    banned
        .iter()
        .filter(|name| has.contains(**name))
        .map(|name| format!("{package} depends on {name}"))
        .collect()
}

#[test]
fn the_domain_has_no_way_out() {
    let allowed = ["alloy-primitives", "rand", "serde", "thiserror", "time", "uuid"];
    let extra = dependencies("domain").into_iter().filter(|name| !allowed.contains(&name.as_str()));
    hold("`domain` uses std, thiserror and value crates, and nothing that waits, reads or writes.", extra);
}

#[test]
fn rows_and_network_do_not_meet() {
    let durable = among("durable", &["outside", "app", "devchain", "hyper", "reqwest", "axum", "http"]);
    let outside = among("outside", &["durable", "app", "devchain", "rusqlite", "postgres"]);
    hold("`durable` and `outside` cannot see each other.", durable.into_iter().chain(outside));
}

#[test]
fn the_product_does_not_know_the_simulator() {
    let found =
        ["domain", "durable", "outside", "app", "devchain"].iter().flat_map(|name| among(name, &["sim"]));
    let product = among("devchain", &["domain", "durable", "outside", "app"]);
    hold(
        "No product code depends on `sim`, and `devchain` depends on no product code.",
        found.chain(product),
    );
}

#[test]
fn the_store_does_not_know_the_engine() {
    let offenders = sources("crates/durable/src/store")
        .into_iter()
        .filter(|(_, text)| text.contains("crate::engine") || text.contains("super::super::engine"))
        .map(|(name, _)| name);
    hold("In `durable`, `engine` uses `store`; `store` does not know `engine`.", offenders);
}

#[test]
fn guards_and_clients_do_not_know_chains() {
    let offenders = ["crates/outside/src/guard", "crates/outside/src/http"]
        .into_iter()
        .flat_map(sources)
        .filter(|(_, text)| text.contains("crate::chain"))
        .map(|(name, _)| name);
    hold("In `outside`, `guard` and `http` know nothing about chains.", offenders);
}

#[test]
fn features_do_not_import_each_other() {
    let files = sources("crates/app/src/features");
    let names: Vec<String> = files
        .iter()
        .filter_map(|(name, _)| Path::new(name).file_stem())
        .map(|stem| stem.to_string_lossy().into_owned())
        .filter(|stem| stem != "mod")
        .collect();
    let offenders = files.iter().flat_map(|(file, text)| {
        names
            .iter()
            .filter(move |name| {
                !file.ends_with(&format!("/{name}.rs"))
                    && [format!("features::{name}"), format!("super::{name}")]
                        .iter()
                        .any(|path| text.contains(path.as_str()))
            })
            .map(move |name| format!("{file} knows {name}"))
    });
    hold("Features do not import each other: they meet in `reactions.rs`.", offenders.collect::<Vec<_>>());
}

#[test]
fn sql_is_spelt_in_one_room() {
    let spelt = ["insert into ", "select * from", "delete from ", " where id = $", "update job set"];
    let offenders = ["crates/domain/src", "crates/outside/src", "crates/app/src"]
        .into_iter()
        .flat_map(sources)
        .filter(|(_, text)| spelt.iter().any(|words| text.contains(words)))
        .map(|(name, _)| name);
    hold("SQL is spelt in `durable` and nowhere else in the product.", offenders);
}

#[test]
fn clocks_are_passed_in() {
    let may = ["crates/outside/src/clock.rs"];
    let offenders = ["crates/domain/src", "crates/durable/src", "crates/outside/src", "crates/app/src"]
        .into_iter()
        .flat_map(sources)
        .filter(|(name, text)| text.contains("clippy::disallowed_methods") && !may.contains(&name.as_str()))
        .map(|(name, _)| name);
    hold(
        "Time and chance are passed in; one file, `outside/src/clock.rs`, reads the machine's clock.",
        offenders,
    );
}

#[test]
fn every_kind_of_work_is_registered() {
    let compose = read("crates/app/src/compose.rs");
    let offenders = sources("crates/app/src/features").into_iter().flat_map(|(file, text)| {
        text.lines()
            .filter_map(|line| line.strip_prefix("impl Work for "))
            .filter_map(|rest| rest.split([' ', '{']).next())
            .filter(|work| {
                !compose.contains(&format!("register({work}")) && !compose.contains(&format!("{work} {{"))
            })
            .map(|work| format!("{file}: {work}"))
            .collect::<Vec<_>>()
    });
    hold("Every kind of work is registered in one list, in `compose.rs`.", offenders);
}

#[test]
fn every_event_is_told_somewhere() {
    let app: String = sources("crates/app/src").into_iter().map(|(_, text)| text).collect();
    let invoice = read("crates/domain/src/invoice.rs");
    let events = read("crates/domain/src/event.rs");
    let list = events.split("event_types! {").nth(1).unwrap().split("\n}").next().unwrap();
    let offenders = list
        .lines()
        .filter_map(|line| line.trim().split_once(" = ").map(|(name, _)| name))
        .filter(|name| {
            let spelt = format!("EventType::{name}");
            !app.contains(&spelt) && !invoice.contains(&spelt)
        })
        .map(str::to_owned);
    hold("Every event of the closed list is told somewhere.", offenders);
}

#[test]
fn every_module_says_what_it_is_for() {
    let offenders = ["domain", "durable", "outside", "app", "devchain", "sim"]
        .into_iter()
        .flat_map(|package| sources(&format!("crates/{package}")))
        .filter(|(_, text)| !text.starts_with("//!"))
        .map(|(name, _)| name);
    hold("Every module begins with what it guarantees and what it deliberately does not do.", offenders);
}

#[test]
fn nothing_is_left_for_later_without_a_place() {
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];
    let offenders = ["domain", "durable", "outside", "app", "devchain", "sim"]
        .into_iter()
        .flat_map(|package| sources(&format!("crates/{package}")))
        .filter(|(_, text)| marks.iter().any(|mark| text.contains(mark)))
        .map(|(name, _)| name);
    hold("There is no unfinished mark in the code: what is missing is said in CHANGELOG.md.", offenders);
}
