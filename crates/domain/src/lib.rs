//! What is true and what may follow: values, state machines and decisions about money.
//!
//! Guarantees: nothing here performs I/O, awaits, reads a clock or rolls dice; `now` and chance are
//! arguments. Every value is parsed at the rim and is valid for as long as it lives. Amounts are
//! integers with checked arithmetic.
//!
//! Deliberately absent: SQL, HTTP, configuration, and `serde` on entities. Values whose wire form is
//! their `Display` form implement `serde` through it, so that there is one spelling everywhere.

// Values, in reading order.
pub mod chance;
pub mod time;

pub mod id;

pub mod money;

pub mod chain;

pub mod backoff;

// Entities and their decisions.
pub mod breaker;
pub mod delivery;
pub mod event;
pub mod invoice;
pub mod payment;

mod wire;
