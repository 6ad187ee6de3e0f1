//! A person's word on a payment: assigning one that no rule could place, or accepting one that came late.
//!
//! Guarantees: only money that went to the invoice's own recipient, in its asset, on its chain can be assigned; a
//! payment that belongs to an invoice is never moved to another.

use domain::id::{InvoiceId, PaymentId};
use domain::invoice::Refusal;
use domain::payment::Stage;
use durable::store::payment::{Matching, PaymentRow};
use durable::store::{StoreError, Tx, invoice, payment};

use crate::ledger::{self, LedgerError};

/// Why a payment was not assigned.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AssignError {
    /// The store's reason.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such payment.
    #[error("there is no such payment")]
    NoPayment,
    /// There is no such invoice.
    #[error("there is no such invoice")]
    NoInvoice,
    /// It belongs to an invoice already.
    #[error("the payment already belongs to {0}; a payment is never moved to another invoice")]
    Taken(InvoiceId),
    /// It is not in the chain now.
    #[error("the payment is reverted: it is not in the chain now")]
    Reverted,
    /// It is money of another kind, or went to somebody else.
    #[error("the payment's {0} is not the invoice's")]
    Differs(&'static str),
    /// The invoice's own reason.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl From<LedgerError> for AssignError {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Store(error) => Self::Store(error),
            LedgerError::Refused(refusal) => Self::Refused(refusal),
        }
    }
}

/// Assigns a payment to an invoice. With `accept_late` it counts as made in time; that also accepts a late payment
/// of the invoice it already belongs to.
///
/// # Errors
/// See [`AssignError`]; nothing changes then.
pub fn assign(
    tx: &mut Tx,
    payment: PaymentId,
    invoice: InvoiceId,
    accept_late: bool,
) -> Result<PaymentRow, AssignError> {
    let row = payment::find(tx, payment)?.ok_or(AssignError::NoPayment)?;
    let target = invoice::find(tx, invoice)?.ok_or(AssignError::NoInvoice)?.invoice;
    if row.stage == Stage::Reverted {
        return Err(AssignError::Reverted);
    }
    let (transfer, differs) = (&row.transfer, AssignError::Differs);
    if transfer.key.chain != target.chain {
        return Err(differs("chain"));
    }
    if transfer.asset != target.asset {
        return Err(differs("asset"));
    }
    if transfer.recipient != target.recipient {
        return Err(differs("recipient"));
    }
    match row.matching.invoice() {
        Some(owner) if owner == invoice && row.late && accept_late => ledger::accept_late(tx, row)?,
        Some(owner) => return Err(AssignError::Taken(owner)),
        None => ledger::attach(tx, invoice, row, Matching::Assigned(invoice), accept_late)?,
    }
    payment::find(tx, payment)?.ok_or(AssignError::NoPayment)
}
