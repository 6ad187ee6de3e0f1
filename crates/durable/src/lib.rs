//! What survives a crash: rows, and work still to do.
//!
//! [`store`] keeps rows. A transaction is a synchronous function that may be run again; what queues
//! up while one commit reaches the disk is committed together with the next. [`engine`] keeps work:
//! jobs that are claimed under a fence, performed outside any transaction, and recorded in one.
//!
//! Deliberately absent: HTTP, RPC, and the name of any feature. SQL is spelt here and nowhere else.

pub mod engine;
pub mod store;
