//! Running transactions and calls on the EVM (`revm`, Prague rules).
//!
//! [`Executor`] runs the transactions of one block in order and yields the state after them; [`call`]
//! is a dry run for `eth_call` and gas estimation: no fee, no nonce, any sender. Nothing here decides
//! what goes into a block, and the system calls of EIP-2935 and EIP-4788 are not made: their contracts
//! are not deployed, and both EIPs are then without effect.

use std::convert::Infallible;

use alloy_consensus::transaction::Recovered;
use alloy_consensus::{Header, Transaction as _, TxEnvelope, Typed2718};
use alloy_primitives::{Address, B256, Bytes, TxKind, U256};
use revm::context::either::Either;
use revm::context::result::{EVMError, ExecutionResult, HaltReason, InvalidTransaction};
use revm::context::transaction::AccessList;
use revm::context::{BlockEnv, Context, TxEnv};
use revm::context_interface::cfg::GasParams;
use revm::handler::MainnetContext;
use revm::primitives::eip4844::BLOB_BASE_FEE_UPDATE_FRACTION_PRAGUE;
use revm::primitives::hardfork::SpecId;
use revm::{ExecuteCommitEvm, ExecuteEvm, MainBuilder, MainnetEvm};

use crate::state::{Database, State};

/// Why a transaction may not be part of the block.
pub(crate) type Invalid = EVMError<Infallible, InvalidTransaction>;

/// The transactions of one block, executed one after the other.
#[derive(Debug)]
pub(crate) struct Executor<'a> {
    evm: MainnetEvm<MainnetContext<Database<'a>>>,
}

impl<'a> Executor<'a> {
    /// Starts on the state after the parent, in the environment that `header` describes.
    pub(crate) fn new(
        state: State,
        chain_id: u64,
        header: &Header,
        block_hash: &'a dyn Fn(u64) -> B256,
    ) -> Self {
        let context: MainnetContext<Database<'a>> =
            Context::new(Database { state, block_hash }, SpecId::PRAGUE);
        let context =
            context.modify_cfg_chained(|cfg| cfg.chain_id = chain_id).with_block(environment(header));
        Self { evm: context.build_mainnet() }
    }

    /// Executes a signed transaction and keeps its effects.
    ///
    /// # Errors
    /// When the transaction is not valid here (nonce, funds, fees): the state is then untouched.
    pub(crate) fn transact(
        &mut self,
        tx: &Recovered<TxEnvelope>,
    ) -> Result<ExecutionResult<HaltReason>, Invalid> {
        self.evm.transact_commit(signed(tx))
    }

    /// Executes without fee or nonce and keeps the effects: for genesis alone.
    pub(crate) fn force(
        &mut self,
        from: Address,
        kind: TxKind,
        data: Bytes,
    ) -> Result<ExecutionResult<HaltReason>, Invalid> {
        self.evm.ctx.cfg.disable_nonce_check = true;
        self.evm.ctx.cfg.disable_base_fee = true;
        let gas_limit = self.evm.ctx.block.gas_limit;
        self.evm.transact_commit(TxEnv {
            caller: from,
            kind,
            data,
            gas_limit,
            chain_id: None,
            nonce: self.state().nonce(from),
            ..TxEnv::default()
        })
    }

    pub(crate) fn state(&self) -> &State {
        &self.evm.ctx.journaled_state.database.state
    }

    pub(crate) fn into_state(self) -> State {
        self.evm.ctx.journaled_state.database.state
    }
}

/// A call that is not a transaction.
#[derive(Debug, Clone, Default)]
pub(crate) struct Call {
    pub(crate) from: Address,
    /// `None` creates a contract.
    pub(crate) to: Option<Address>,
    pub(crate) value: U256,
    pub(crate) data: Bytes,
    /// Defaults to the block's gas limit.
    pub(crate) gas: Option<u64>,
    pub(crate) access_list: AccessList,
}

/// Runs `call` on the state after the block of `header`, and forgets its effects.
///
/// # Errors
/// When the call is refused before execution (funds, intrinsic gas).
pub(crate) fn call(
    state: State,
    chain_id: u64,
    header: &Header,
    block_hash: &dyn Fn(u64) -> B256,
    call: Call,
) -> Result<ExecutionResult<HaltReason>, Invalid> {
    let context: MainnetContext<Database<'_>> = Context::new(Database { state, block_hash }, SpecId::PRAGUE);
    let mut evm = context
        .modify_cfg_chained(|cfg| {
            cfg.chain_id = chain_id;
            cfg.disable_nonce_check = true;
            cfg.disable_base_fee = true;
            cfg.disable_eip3607 = true;
            cfg.disable_block_gas_limit = true;
        })
        .with_block(environment(header))
        .build_mainnet();
    let executed = evm.transact(TxEnv {
        caller: call.from,
        kind: call.to.map_or(TxKind::Create, TxKind::Call),
        value: call.value,
        data: call.data,
        gas_limit: call.gas.unwrap_or(header.gas_limit),
        access_list: call.access_list,
        chain_id: None,
        ..TxEnv::default()
    })?;
    Ok(executed.result)
}

/// The least gas limit with which a transaction is valid: its intrinsic cost, or the floor that EIP-7623
/// puts under calldata.
pub(crate) fn minimum_gas(tx: &Recovered<TxEnvelope>) -> u64 {
    let gas = GasParams::new_spec(SpecId::PRAGUE).initial_tx_gas_for_tx(signed(tx), None);
    gas.initial_regular_gas().max(gas.floor_gas)
}

fn environment(header: &Header) -> BlockEnv {
    let mut block = BlockEnv {
        number: U256::from(header.number),
        beneficiary: header.beneficiary,
        timestamp: U256::from(header.timestamp),
        gas_limit: header.gas_limit,
        basefee: header.base_fee_per_gas.unwrap_or_default(),
        difficulty: U256::ZERO,
        prevrandao: Some(header.mix_hash),
        ..BlockEnv::default()
    };
    block.set_blob_excess_gas_and_price(
        header.excess_blob_gas.unwrap_or_default(),
        BLOB_BASE_FEE_UPDATE_FRACTION_PRAGUE,
    );
    block
}

fn signed(tx: &Recovered<TxEnvelope>) -> TxEnv {
    TxEnv {
        tx_type: tx.ty(),
        caller: tx.signer(),
        gas_limit: tx.gas_limit(),
        // `max_fee_per_gas` is the gas price of transactions that have only that.
        gas_price: tx.max_fee_per_gas(),
        gas_priority_fee: tx.max_priority_fee_per_gas(),
        kind: tx.kind(),
        value: tx.value(),
        data: tx.input().clone(),
        nonce: tx.nonce(),
        chain_id: tx.chain_id(),
        access_list: tx.access_list().cloned().unwrap_or_default(),
        authorization_list: tx
            .authorization_list()
            .unwrap_or_default()
            .iter()
            .cloned()
            .map(Either::Left)
            .collect(),
        ..TxEnv::default()
    }
}
