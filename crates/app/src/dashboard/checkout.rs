//! The payer's page: how much, in what, on which network, to whom, until when, and whether it has arrived.
//!
//! It shows no reference, no metadata and no payer. The code holds the EIP-681 link for what is still missing; since
//! wallets differ in what they understand, address and amount stand beside it as text.

use domain::invoice::{Invoice, Status};
use durable::store::invoice::InvoiceRow;
use maud::{Markup, html};

use super::page::{Live, amount, frame, network, qr};
use crate::api::AppState;
use crate::view::pay_uri;

pub(super) fn render(state: &AppState, row: &InvoiceRow) -> Markup {
    let invoice = &row.invoice;
    let status = invoice.status();
    let main = html! {
        section.narrow.checkout {
            h1 { (amount(&state.config, invoice.chain, &invoice.asset, invoice.amount)) }
            p.state.(status.as_str()) role="status" { (headline(invoice, status)) }
            @if status.is_active() && !invoice.remaining().is_zero() { (how_to_pay(state, invoice)) }
            dl {
                dt { "Network" } dd { (network(invoice.chain)) }
                dt { "Arrived" } dd { (amount(&state.config, invoice.chain, &invoice.asset, invoice.paid.seen)) }
                dt { "Confirmed" } dd { (amount(&state.config, invoice.chain, &invoice.asset, invoice.paid.confirmed)) }
                dt { "Open until" } dd { time datetime=(invoice.expires_at) { (invoice.expires_at) } }
                @if let Some(tx) = row.settled_by.filter(|_| status == Status::Settled) {
                    dt { "Transaction" } dd { code { (tx) } }
                }
                dt { "Invoice" } dd { code { (invoice.id) } }
            }
        }
    };
    let live = if invoice.is_final() { Live::Still } else { Live::Poll };
    let refresh = (!invoice.is_final()).then_some(10);
    frame("Payment", refresh, live, &main)
}

fn how_to_pay(state: &AppState, invoice: &Invoice) -> Markup {
    let missing = Invoice { amount: invoice.remaining(), ..invoice.clone() };
    let uri = pay_uri(&missing);
    html! {
        div.pay {
            @if let Some(code) = qr(&uri) { a href=(uri) { (code) } }
            dl {
                dt { "Send exactly" }
                dd { (amount(&state.config, invoice.chain, &invoice.asset, missing.amount)) }
                dt { "To" } dd { code.copy { (invoice.recipient) } }
                @if let domain::chain::Asset::Token(token) = invoice.asset {
                    dt { "Token contract" } dd { code.copy { (token) } }
                }
                @if let Some(payer) = invoice.payer {
                    dt { "From" } dd { code { (payer) } " only: a payment from another address is not counted" }
                }
            }
            p { a.button href=(uri) { "Open in a wallet" } }
            p.dim { "Use this network only. What is sent on another network does not arrive here." }
        }
    }
}

fn headline(invoice: &Invoice, status: Status) -> &'static str {
    match status {
        Status::Open => "Waiting for your payment",
        Status::Detected => "Seen in a block; waiting for confirmations",
        Status::Confirmed => "A part has arrived; the rest is still missing",
        Status::Settled if invoice.is_overpaid() => {
            "Paid, and more than was asked: ask the merchant about the rest"
        }
        Status::Settled if invoice.is_final() => "Paid, for good",
        Status::Settled => "Paid",
        Status::Underpaid => "Expired with a part of the amount paid: contact the merchant",
        Status::Expired if invoice.is_late() => "A payment came after the end: contact the merchant",
        Status::Expired => "Expired: please do not pay any more",
        Status::Canceled => "Withdrawn by the merchant: please do not pay",
    }
}
