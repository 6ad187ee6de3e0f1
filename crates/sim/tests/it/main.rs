//! The tools of the storm, each tried on its own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod evidence;
mod receiver;
mod storms;
