//! The outside world of the tour: a chain in memory and five providers that show it, each of another owner.
//!
//! What happened is read from the chain itself and never from a provider. Blocks are mined when the tour says so, at the
//! time of the wall clock, so that latencies mean what they say.
//!
//! Deliberately absent: the product. This file would be the same for any other payment watcher.

use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, B256, U256, keccak256};
use devchain::token::CONTRACTS;
use devchain::{ChainError, Devchain, Face, Include, serve_face};
use domain::time::{Clock, Timestamp};

/// The owners of the providers, one provider each.
pub(super) const GROUPS: [&str; 5] = ["alpha", "beta", "gamma", "delta", "epsilon"];
/// The providers by their place in [`GROUPS`].
pub(super) const ALPHA: usize = 0;
/// See [`ALPHA`].
pub(super) const BETA: usize = 1;
/// See [`ALPHA`].
pub(super) const GAMMA: usize = 2;
/// See [`ALPHA`].
pub(super) const DELTA: usize = 3;
/// See [`ALPHA`].
pub(super) const EPSILON: usize = 4;
/// How many owners have to agree.
pub(super) const QUORUM: usize = 3;
/// The depth at which a payment counts as confirmed.
pub(super) const CONFIRMATIONS: u64 = 2;
/// The chain id, known to have roots that can be recomputed.
pub(super) const CHAIN_ID: u64 = 31_337;
/// Dev accounts that pay; the first one is left to people.
const PAYERS: usize = 15;

/// A block that was just mined.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mined {
    /// Its height.
    pub(super) number: u64,
    /// When it existed, on the monotonic clock.
    pub(super) at: Duration,
    /// When it existed, on the wall clock.
    pub(super) wall: Timestamp,
}

/// The chain and its providers.
pub(super) struct World {
    /// The truth.
    pub(super) chain: Devchain,
    /// How it is shown, in the order of [`GROUPS`].
    pub(super) faces: Vec<Face>,
    clock: Arc<dyn Clock>,
    recipients: u64,
    payments: usize,
}

impl World {
    /// A fresh chain with a few blocks, shown by five providers on free loopback ports.
    ///
    /// # Errors
    /// When no port can be had.
    pub(super) async fn new(clock: Arc<dyn Clock>) -> std::io::Result<Self> {
        let now = u64::try_from(clock.now().as_seconds()).unwrap_or_default();
        let chain = Devchain::new(devchain::Config {
            chain_id: CHAIN_ID,
            genesis_time: now.saturating_sub(60),
            block_time_secs: 1,
            ..devchain::Config::default()
        });
        chain.mine_n(3);
        let mut faces = Vec::with_capacity(GROUPS.len());
        for group in GROUPS {
            faces.push(serve_face(&chain, group).await?);
        }
        Ok(Self { chain, faces, clock, recipients: 0, payments: 0 })
    }

    /// Mines a block of everything that waits. When blocks come faster than one in a second, the chain's time runs ahead.
    pub(super) fn mine(&self) -> Mined {
        mine(&self.chain, &*self.clock)
    }

    /// An address that nobody was ever paid at.
    pub(super) fn fresh_recipient(&mut self) -> Address {
        self.recipients = self.recipients.saturating_add(1);
        let seed = format!("recipient {} of the tour", self.recipients);
        Address::from_word(keccak256(seed))
    }

    /// Has the next customer send dollars; they are in the chain when a block is mined.
    ///
    /// # Errors
    /// When the mempool refuses.
    pub(super) fn pay(&mut self, to: Address, amount: U256) -> Result<B256, ChainError> {
        let payer = 1 + self.payments % PAYERS;
        self.payments = self.payments.wrapping_add(1);
        self.chain.send_token(CONTRACTS.dollar, payer, to, amount)
    }

    /// What an address has, by the chain's own state.
    pub(super) fn dollars_of(&self, owner: Address) -> U256 {
        self.chain.token_balance(CONTRACTS.dollar, owner)
    }

    /// Every provider is up and honest.
    ///
    /// # Errors
    /// When a port was taken meanwhile.
    pub(super) async fn heal(&self) -> std::io::Result<()> {
        for face in &self.faces {
            face.heal();
            face.start().await?;
        }
        Ok(())
    }
}

/// As [`World::mine`], for whoever holds only the chain.
pub(super) fn mine(chain: &Devchain, clock: &dyn Clock) -> Mined {
    let now = u64::try_from(clock.now().as_seconds()).unwrap_or_default();
    let next = chain.head().timestamp.saturating_add(1);
    // Somebody else may mine at the same moment, over RPC; then the regular time is good.
    if chain.mine_with(Some(next.max(now)), &Include::All).is_err() {
        chain.mine();
    }
    Mined { number: chain.head().number, at: clock.monotonic(), wall: clock.now() }
}
