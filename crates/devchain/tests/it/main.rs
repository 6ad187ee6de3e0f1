//! The development chain as its clients see it: over HTTP, checked by code that does not come from it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should panic, in its helpers too")]

mod client;
mod faults;
mod methods;
mod reorgs;
mod speed;
mod tokens;
mod truth;
mod verify;

use alloy_primitives::{Address, U256};
use devchain::{Config, Devchain, Face, serve_face};

use crate::client::Rpc;

pub(crate) fn dollars(units: u64) -> U256 {
    U256::from(units) * U256::from(1_000_000)
}

pub(crate) fn payee(index: u8) -> Address {
    Address::repeat_byte(index)
}

pub(crate) async fn served(config: Config) -> (Devchain, Face, Rpc) {
    let chain = Devchain::new(config);
    let face = serve_face(&chain, "alpha").await.unwrap();
    let rpc = Rpc::new(face.url());
    (chain, face, rpc)
}
