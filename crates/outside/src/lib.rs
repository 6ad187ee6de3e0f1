//! Everything we ask of others, and how we protect ourselves while asking.
//!
//! Guarantees: every wait has a deadline that comes from a [`domain::time::Clock`]; every byte that
//! comes in is bounded; an answer is a value with its evidence, a failure is a class that says what
//! may have happened on the other side.
//!
//! Deliberately absent: SQL, and the name of any feature of the product.

pub mod chain;
pub mod clock;
pub mod guard;
pub mod http;
