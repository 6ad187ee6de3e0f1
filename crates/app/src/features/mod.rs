//! What the product does, one kind of work or one noun's verbs a file.
//!
//! Features do not import each other: they meet through events, in `crate::reactions`.

pub mod claim;
pub mod endpoint;
pub mod evidence;
pub mod invoice;
pub mod lookback;
pub mod payment;
pub mod watch;
pub mod webhook;
