//! What can go wrong, one storm a file.

pub mod settling;
