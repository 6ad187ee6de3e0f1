//! What `outside` promises, held against hostile others on loopback.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod chain;
mod chain_evidence;
mod chain_latency;
mod chain_votes;
mod guard;
mod hostile;
mod http;
mod manual;
mod recorded;
mod target;
mod tls;
