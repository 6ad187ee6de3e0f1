//! What the shell promises: bad configuration and bad requests are refused clearly, keys are asked for, the
//! document and the routes agree.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod anvil;
mod api_access;
mod api_calls;
mod api_flow;
mod api_input;
mod api_once;
mod api_server;
mod cli;
mod config;
mod dev;
mod hostile;
mod kill;
mod loopback;
mod nodes;
mod proxy;
mod settle;
mod tidy;
mod webhook;
mod world;
