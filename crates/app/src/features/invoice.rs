//! Making and withdrawing invoices.
//!
//! Guarantees: an invoice that could not be told apart from an open one is refused; one that was paid before it was made finds
//! its payment, when nobody else could claim it. Each verb is one function over a transaction, so that a caller can put its own rows beside it.

use domain::chain::{Address, Asset, ChainId, Confirmations};
use domain::id::InvoiceId;
use domain::invoice::{Invoice, Refusal, Tally};
use domain::money::Amount;
use domain::time::Timestamp;
use durable::store::invoice::{Indistinguishable, InvoiceRow};
use durable::store::{Query, StoreError, Tx, block, invoice};

use crate::ledger::{self, LedgerError};
use crate::reactions;

/// An invoice as asked for; parsed, not yet checked against others.
#[derive(Debug, Clone)]
pub struct NewInvoice {
    /// On which chain.
    pub chain: ChainId,
    /// In which asset.
    pub asset: Asset,
    /// How much; more than nothing.
    pub amount: Amount,
    /// To whom.
    pub recipient: Address,
    /// By whom, if only this payer counts.
    pub payer: Option<Address>,
    /// When a payment counts as confirmed.
    pub confirmations: Confirmations,
    /// Payments in later blocks are late.
    pub expires_at: Timestamp,
    /// The merchant's own reference.
    pub reference: Option<String>,
    /// The merchant's own data, a JSON text.
    pub metadata: Option<String>,
}

/// Why an invoice was not made or not withdrawn.
#[derive(Debug, Clone, thiserror::Error)]
pub enum InvoiceError {
    /// The store's reason.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing could tell a payment for one from a payment for the other.
    #[error(
        "an open invoice with the same chain, asset, recipient and amount exists; use a recipient of its own, name the payer, or change the amount"
    )]
    Indistinguishable,
    /// There is no such invoice.
    #[error("there is no such invoice")]
    Missing,
    /// The invoice's own reason.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl From<LedgerError> for InvoiceError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Store(error) => Self::Store(error),
            LedgerError::Refused(refusal) => Self::Refused(refusal),
        }
    }
}

/// Makes an invoice.
///
/// # Errors
/// [`InvoiceError::Indistinguishable`], or the store's.
pub fn create(tx: &mut Tx, new: &NewInvoice) -> Result<InvoiceRow, InvoiceError> {
    let cursor = block::find_cursor(tx, new.chain)?;
    let row = InvoiceRow {
        invoice: Invoice {
            id: InvoiceId::mint(tx.now(), tx.chance()),
            chain: new.chain,
            asset: new.asset,
            amount: new.amount,
            recipient: new.recipient,
            payer: new.payer,
            confirmations: new.confirmations,
            created_at: tx.now(),
            created_block: cursor
                .filter(|cursor| cursor.stalled.is_none())
                .map(|cursor| cursor.head.max(cursor.block.number)),
            expires_at: new.expires_at,
            paid: Tally::default(),
            late: Tally::default(),
            expired: false,
            canceled: false,
            reverted: false,
            sequence: 0,
        },
        reference: new.reference.clone(),
        metadata: new.metadata.clone(),
        settled_at: None,
        settled_by: None,
    };
    let id = row.invoice.id;
    let known = invoice::knows_recipient(tx, new.chain, &new.recipient)?;
    invoice::insert(tx, &row)?.map_err(|Indistinguishable| InvoiceError::Indistinguishable)?;
    let now = tx.now();
    block::watch_asset(tx, new.chain, &new.asset, now)?;
    if known {
        ledger::claim_earlier(tx, id)?;
    } else {
        look_back(tx, new)?;
    }
    invoice::find(tx, id)?.ok_or(InvoiceError::Missing)
}

/// A recipient that was nobody's may have been paid a moment ago: its blocks are read and proven again.
fn look_back(tx: &mut Tx, new: &NewInvoice) -> Result<(), StoreError> {
    for number in block::list_sightings(tx, new.chain, &new.recipient)? {
        reactions::look_back(tx, new.chain, number)?;
    }
    Ok(())
}

/// Withdraws an invoice that no money was seen for.
///
/// # Errors
/// [`InvoiceError::Missing`], what the invoice refuses, or the store's.
pub fn cancel(tx: &mut Tx, id: InvoiceId) -> Result<InvoiceRow, InvoiceError> {
    let mut row = invoice::find(tx, id)?.ok_or(InvoiceError::Missing)?;
    ledger::cancel(tx, &mut row)?;
    Ok(row)
}
