//! What the shell promises: bad configuration and bad requests are refused clearly, keys are asked for, the
//! document and the routes agree.

mod config;
mod settle;
mod world;
mod tidy;
