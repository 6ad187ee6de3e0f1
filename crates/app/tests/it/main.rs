//! What the shell promises: bad configuration and bad requests are refused clearly, keys are asked for, the
//! document and the routes agree.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod config;
mod settle;
mod tidy;
mod world;
