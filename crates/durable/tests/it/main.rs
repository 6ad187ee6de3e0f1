//! What the store and the engine promise, tried from outside.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop where it stands")]

mod engine;
mod store;
mod time;

use std::path::Path;
use std::sync::Arc;

use domain::chance::Chance;
use durable::store::{Store, StoreError, StoreOptions, Threading};

use crate::time::HandClock;

/// A store on a fresh file, and the clock that moves it by hand.
fn fresh(dir: &tempfile::TempDir, threading: Threading) -> (Store, Arc<HandClock>) {
    let clock = HandClock::new();
    (reopen(&dir.path().join("db"), threading, &clock), clock)
}

fn reopen(path: &Path, threading: Threading, clock: &Arc<HandClock>) -> Store {
    let options = StoreOptions { threading, ..StoreOptions::default() };
    for _ in 0..1000 {
        match Store::open(path, options, Arc::clone(clock) as _, Chance::from_seed(clock.seed())) {
            // A child that another test starts holds every open file until it has become another program.
            Err(StoreError::Locked(_)) => breathe(),
            opened => return opened.unwrap(),
        }
    }
    panic!("{} stays locked", path.display());
}

/// Leaves the processor to others for a moment.
fn breathe() {
    let (_open, nothing) = std::sync::mpsc::channel::<()>();
    let _ = nothing.recv_timeout(std::time::Duration::from_millis(1));
}
