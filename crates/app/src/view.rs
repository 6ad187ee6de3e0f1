//! How invoices, payments and events look outside: one shape in the API, in events and on the command line.
//!
//! Amounts are decimal strings, times RFC 3339, ids prefixed. A view is made from rows and holds nothing that
//! the reader of that row may not see. Links that depend on where the server is reached are added by the API.

use alloy_primitives::{Address, B256};
use domain::chain::{Asset, ChainId};
use domain::event::EventType;
use domain::id::{EventId, InvoiceId, PaymentId};
use domain::invoice::{Invoice, Status};
use domain::money::Amount;
use domain::payment::Stage;
use domain::time::Timestamp;
use durable::store::invoice::InvoiceRow;
use durable::store::payment::{Matching, PaymentRow};
use serde::Serialize;
use serde_json::value::RawValue;

/// An invoice.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct InvoiceView {
    /// Its id.
    #[schema(value_type = String, example = "inv_0198c0de4a3b7c5d8e9fa0b1c2d3e4f5")]
    pub id: InvoiceId,
    /// Where it stands.
    #[schema(value_type = String, example = "settled")]
    pub status: Status,
    /// CAIP-2 chain.
    #[schema(value_type = String, example = "eip155:8453")]
    pub chain: ChainId,
    /// `native` or the token's address.
    #[schema(value_type = String, example = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913")]
    pub asset: Asset,
    /// What is asked for, in base units.
    #[schema(value_type = String, example = "2500000")]
    pub amount: Amount,
    /// Who is to be paid.
    #[schema(value_type = String)]
    pub recipient: Address,
    /// The only payer that counts, if one is named.
    #[schema(value_type = Option<String>)]
    pub payer: Option<Address>,
    /// Paid in time and in proven blocks, confirmed or not.
    #[schema(value_type = String)]
    pub amount_paid: Amount,
    /// Of that, confirmed.
    #[schema(value_type = String)]
    pub amount_confirmed: Amount,
    /// Paid after expiry or cancellation.
    #[schema(value_type = String)]
    pub amount_late: Amount,
    /// More than the amount is confirmed.
    pub overpaid: bool,
    /// Money came late.
    pub late: bool,
    /// A payment that had been told of vanished at least once.
    pub reverted: bool,
    /// Finalized payments cover the amount: nothing can change the status any more.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// When a payment counts as confirmed: a depth, `safe` or `finalized`.
    pub confirmations: String,
    /// The merchant's own reference.
    pub reference: Option<String>,
    /// The merchant's own data.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Box<RawValue>>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Payments in later blocks are late.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// When it was settled.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub settled_at: Option<Timestamp>,
    /// The transaction whose confirmation settled it.
    #[schema(value_type = Option<String>)]
    pub tx_hash: Option<B256>,
    /// Invoice id and transaction hash, for people; uniqueness is per transfer.
    pub settlement_key: Option<String>,
    /// EIP-681 payment link.
    pub pay_uri: String,
}

impl InvoiceView {
    /// The view of a row.
    #[must_use]
    pub fn of(row: &InvoiceRow) -> Self {
        let invoice = &row.invoice;
        let settled = invoice.status() == Status::Settled;
        let tx_hash = row.settled_by.filter(|_| settled);
        Self {
            id: invoice.id,
            status: invoice.status(),
            chain: invoice.chain,
            asset: invoice.asset,
            amount: invoice.amount,
            recipient: invoice.recipient,
            payer: invoice.payer,
            amount_paid: invoice.paid.seen,
            amount_confirmed: invoice.paid.confirmed,
            amount_late: invoice.late.seen,
            overpaid: invoice.is_overpaid(),
            late: invoice.is_late(),
            reverted: invoice.reverted,
            is_final: invoice.is_final(),
            confirmations: invoice.confirmations.to_string(),
            reference: row.reference.clone(),
            metadata: row.metadata.clone().and_then(|text| RawValue::from_string(text).ok()),
            created_at: invoice.created_at,
            expires_at: invoice.expires_at,
            settled_at: row.settled_at.filter(|_| settled),
            tx_hash,
            settlement_key: tx_hash.map(|tx| format!("{}:{tx}", invoice.id)),
            pay_uri: pay_uri(invoice),
        }
    }
}

/// EIP-681: what a wallet opens to pay the invoice's amount.
#[must_use]
pub fn pay_uri(invoice: &Invoice) -> String {
    let chain = invoice.chain.number();
    match invoice.asset {
        Asset::Native => format!("ethereum:{}@{chain}?value={}", invoice.recipient, invoice.amount),
        Asset::Token(_) => {
            let token = invoice.asset;
            format!(
                "ethereum:{token}@{chain}/transfer?address={}&uint256={}",
                invoice.recipient, invoice.amount
            )
        }
    }
}

/// A payment.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct PaymentView {
    /// Its id.
    #[schema(value_type = String)]
    pub id: PaymentId,
    /// CAIP-2 chain.
    #[schema(value_type = String)]
    pub chain: ChainId,
    /// `native` or the token's address.
    #[schema(value_type = String)]
    pub asset: Asset,
    /// How much, in base units.
    #[schema(value_type = String)]
    pub amount: Amount,
    /// From whom.
    #[schema(value_type = String)]
    pub payer: Address,
    /// To whom.
    #[schema(value_type = String)]
    pub recipient: Address,
    /// The transaction.
    #[schema(value_type = String)]
    pub tx_hash: B256,
    /// The log's place among the transaction's own logs; -1 for its value in the chain's own coin.
    pub ordinal: i64,
    /// The block's height.
    pub block: u64,
    /// The block's hash.
    #[schema(value_type = String)]
    pub block_hash: B256,
    /// The block's time.
    #[schema(value_type = String, format = DateTime)]
    pub block_time: Timestamp,
    /// `detected`, `confirmed`, `final` or `reverted`.
    #[schema(value_type = String)]
    pub stage: Stage,
    /// How it is known: `VERIFIED`, `QUORUM` or `DEGRADED`.
    pub evidence_level: String,
    /// `matched`, `assigned`, `ambiguous`, `no_invoice` or `other_payer`.
    pub matching: String,
    /// The invoice it belongs to.
    #[schema(value_type = Option<String>)]
    pub invoice_id: Option<InvoiceId>,
    /// The invoices it could belong to, when it is ambiguous.
    #[schema(value_type = Vec<String>)]
    pub candidates: Vec<InvoiceId>,
    /// Made after its invoice expired or was canceled.
    pub late: bool,
    /// When we first saw it.
    #[schema(value_type = String, format = DateTime)]
    pub seen_at: Timestamp,
    /// When it was confirmed.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub confirmed_at: Option<Timestamp>,
}

impl PaymentView {
    /// The view of a row.
    #[must_use]
    pub fn of(row: &PaymentRow) -> Self {
        let transfer = &row.transfer;
        Self {
            id: row.id,
            chain: transfer.key.chain,
            asset: transfer.asset,
            amount: transfer.amount,
            payer: transfer.payer,
            recipient: transfer.recipient,
            tx_hash: transfer.key.tx,
            ordinal: transfer.key.ordinal,
            block: transfer.block.number,
            block_hash: transfer.block.hash,
            block_time: transfer.time,
            stage: row.stage,
            evidence_level: row.level.to_string(),
            matching: row.matching.as_str().to_owned(),
            invoice_id: row.matching.invoice(),
            candidates: match &row.matching {
                Matching::Ambiguous(ids) => ids.clone(),
                _ => Vec::new(),
            },
            late: row.late,
            seen_at: row.seen_at,
            confirmed_at: row.confirmed_at,
        }
    }
}

/// An event as merchants receive it. Its bytes are frozen when it happens.
#[derive(Debug, Serialize)]
pub struct EventBody<'a, D> {
    /// Its id; also the `webhook-id` of every delivery.
    pub id: EventId,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// When.
    pub created_at: Timestamp,
    /// The how-manieth event of its invoice, without gaps; 0 when it concerns no invoice.
    pub sequence: u64,
    /// What it is about.
    pub data: &'a D,
}

/// What an event about an invoice says.
#[derive(Debug, Serialize)]
pub struct InvoiceEvent {
    /// The invoice after it.
    pub invoice: InvoiceView,
    /// The payment that caused it, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payment: Option<PaymentView>,
}
