//! Deciding disputed claims: asking about them again until evidence closes them.
//!
//! Guarantees: an open claim freezes only the invoices it could touch; it is closed when `k` groups have it (its block is then
//! read again), when `k` groups deny it at a finalized block, or when its block has left the chain. Never by time.

use std::collections::BTreeMap;
use std::time::Duration;

use domain::chain::{ChainId, TransferKey};
use durable::engine::{AfterCrash, Attempt, Next, Recording, Trouble, Work};
use durable::store::claim::ClaimRow;
use durable::store::{Query, ReadOnly, StoreError, block, claim};
use outside::chain::{ChainReader, ClaimOutcome, DisputedClaim};
use serde::{Deserialize, Serialize};

use crate::reactions;

/// How often a claim that stays disputed is asked about.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// The work of asking about one claim again.
pub struct Recheck {
    /// The chains that can be asked.
    pub chains: BTreeMap<ChainId, ChainReader>,
}

/// Which claim.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RecheckInput {
    /// The chain.
    pub chain: ChainId,
    /// The transaction.
    pub tx: domain::chain::B256,
    /// The place in it.
    pub ordinal: i64,
}

impl RecheckInput {
    fn is_about(&self, row: &ClaimRow) -> bool {
        row.transfer.key == TransferKey { chain: self.chain, tx: self.tx, ordinal: self.ordinal }
    }
}

/// What was found out of each open claim on the transfer.
pub type RecheckFact = Vec<(ClaimRow, ClaimOutcome)>;

impl Work for Recheck {
    const KIND: &'static str = "recheck_claim";
    const AFTER_CRASH: AfterCrash = AfterCrash::Rerun;
    type Input = RecheckInput;
    type Fact = RecheckFact;

    async fn perform(
        &self,
        input: &RecheckInput,
        _attempt: &Attempt,
        store: &ReadOnly,
    ) -> Result<RecheckFact, Trouble> {
        let again = |why: String| Trouble::Again { after: None, why };
        let chain = input.chain;
        let open = store
            .read(move |query| claim::list_open(query, chain))
            .await
            .map_err(|error: StoreError| again(error.to_string()))?;
        let Some(reader) = self.chains.get(&chain) else {
            return Err(again("the chain is not configured".to_owned()));
        };
        let mut found = Vec::new();
        for row in open.into_iter().filter(|row| input.is_about(row)) {
            let claimants = row.claimants.split(',').map(str::to_owned).collect();
            let dispute = DisputedClaim { transfer: row.transfer, claimants };
            let outcome = reader.recheck(&dispute).await.map_err(|stall| again(stall.to_string()))?;
            found.push((row, outcome));
        }
        Ok(found)
    }

    fn record(
        recording: &mut Recording<'_>,
        input: &RecheckInput,
        _attempt: &Attempt,
        outcome: Result<&RecheckFact, &Trouble>,
    ) -> Result<Next, StoreError> {
        let later = Next::Again { at: recording.now() + ASK_EVERY };
        let Ok(found) = outcome else { return Ok(later) };
        let finalized = block::find_cursor(recording, input.chain)?.map_or(0, |cursor| cursor.finalized);
        let mut open = false;
        for (row, outcome) in found {
            let transfer = &row.transfer;
            let verdict = match outcome {
                ClaimOutcome::Confirmed => {
                    reactions::look_back(recording, input.chain, transfer.block.number)?;
                    "accepted"
                }
                ClaimOutcome::Denied if transfer.block.number <= finalized => "rejected",
                ClaimOutcome::Gone => "off_chain",
                ClaimOutcome::Denied | ClaimOutcome::Open => {
                    open = true;
                    continue;
                }
            };
            let now = recording.now();
            claim::close(recording, &transfer.key, &transfer.block, verdict, now)?;
        }
        Ok(if open { later } else { Next::Done })
    }
}
