//! What the product does, and the only place that knows concrete choices.
//!
//! Guarantees: features meet only through events; what is configured, spoken over HTTP, printed or measured is
//! named in one place each. Deliberately absent: SQL text, raw network clients, and rules that could be pure.

pub mod api;
pub mod cli;
pub mod compose;
pub mod config;
pub mod dashboard;
mod dev;
pub mod features;
pub mod ledger;
pub mod reactions;
pub mod reading;
pub mod telemetry;
pub mod view;
