//! Reading a block again, for a recipient that became somebody's after it was paid.
//!
//! Guarantees: the block is proven anew and has to be the one that our chain holds at that height; what is counted already is not counted again.

use std::collections::BTreeMap;
use std::time::Duration;

use domain::chain::{Asset, ChainId, Confirmations};
use durable::engine::{AfterCrash, Attempt, Next, Recording, Trouble, Work};
use durable::store::{Query, ReadOnly, StoreError, block};
use outside::chain::ChainReader;
use serde::{Deserialize, Serialize};

use crate::config::ChainConfig;
use crate::ledger::{self, LedgerError};
use crate::reading::{self, ReadBlock};

/// The work of reading one block again.
pub struct LookBack {
    /// The chains that can be read.
    pub chains: BTreeMap<ChainId, (ChainReader, ChainConfig)>,
}

/// Which block.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LookBackInput {
    /// The chain.
    pub chain: ChainId,
    /// The height.
    pub number: u64,
}

/// The block, proven anew; none when its chain is not configured any more.
#[derive(Debug, Clone)]
pub struct LookBackFact {
    read: Option<ReadBlock>,
    assets: Vec<Asset>,
    confirmations: Confirmations,
}

impl Work for LookBack {
    const KIND: &'static str = "look_back";
    const AFTER_CRASH: AfterCrash = AfterCrash::Rerun;
    type Input = LookBackInput;
    type Fact = LookBackFact;

    async fn perform(
        &self,
        input: &LookBackInput,
        _attempt: &Attempt,
        store: &ReadOnly,
    ) -> Result<LookBackFact, Trouble> {
        let again = |why: String| Trouble::Again { after: None, why };
        let Some((reader, config)) = self.chains.get(&input.chain) else {
            return Ok(LookBackFact {
                read: None,
                assets: Vec::new(),
                confirmations: Confirmations::Finalized,
            });
        };
        let chain = input.chain;
        let assets = store
            .read(move |query| block::list_watched_assets(query, chain))
            .await
            .map_err(|error: StoreError| again(error.to_string()))?;
        let proven = reader
            .read_block(input.number, &reading::watch(store, chain, &assets))
            .await
            .map_err(|stall| again(stall.to_string()))?;
        let read =
            reading::prepare(store, vec![proven]).await.map_err(|error| again(error.to_string()))?.pop();
        Ok(LookBackFact { read, assets, confirmations: config.confirmations })
    }

    fn record(
        recording: &mut Recording<'_>,
        input: &LookBackInput,
        _attempt: &Attempt,
        outcome: Result<&LookBackFact, &Trouble>,
    ) -> Result<Next, StoreError> {
        let Ok(LookBackFact { read: Some(read), assets, confirmations }) = outcome else {
            return Ok(Recording::usual(outcome));
        };
        if block::list_watched_assets(recording, input.chain)? != *assets {
            return Ok(Next::Released { at: recording.now() });
        }
        match block::find(recording, input.chain, input.number)? {
            // Forgotten, or taken away by a reorg: the watcher reads what came in its place.
            None => return Ok(Next::Done),
            Some(ours) if ours.block != read.link.block => {
                return Ok(Next::Released { at: recording.now() + Duration::from_secs(1) });
            }
            Some(_) => {}
        }
        reading::open_claims(recording, read)?;
        reading::count(recording, input.chain, read, *confirmations, None)?;
        let Some(cursor) = block::find_cursor(recording, input.chain)? else { return Ok(Next::Done) };
        if cursor.frozen.is_none() {
            match ledger::advance(recording, input.chain, cursor.heights()) {
                Ok(_) => {}
                Err(LedgerError::Store(error)) => return Err(error),
                Err(LedgerError::Refused(refusal)) => return Err(StoreError::damaged(refusal)),
            }
        }
        Ok(Next::Done)
    }
}
