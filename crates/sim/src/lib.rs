//! What could go wrong, on purpose, from a seed.
//!
//! Guarantees: a scenario's faults come from its seed, so that a failure can be played again; the judges
//! that decide whether a promise held are not the code that made it.
//!
//! Deliberately absent: anything the product itself needs.

pub mod checks;
pub mod clock;
pub mod crash;
pub mod figures;
pub mod local;
pub mod receiver;
pub mod scenarios;
pub mod world;
