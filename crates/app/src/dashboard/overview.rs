//! The operator's pages: unresolved money first, then invoices, providers and deliveries.

use domain::invoice::Status;
use domain::time::Timestamp;
use durable::store::event::EventRow;
use durable::store::invoice::{Filter as InvoiceFilter, InvoiceRow};
use durable::store::payment::{Filter as PaymentFilter, Matching, PaymentRow};
use durable::store::{Query, StoreError, delivery, endpoint, invoice, payment};
use maud::{Markup, html};

use super::page::{Live, amount, frame, network};
use crate::api::AppState;
use crate::api::chains::{ChainView, ProviderView, chain_views, provider_views};
use crate::api::system::refresh;
use crate::api::webhooks::{DeliveryView, delivery_views};
use crate::config::Auth;

/// Rows of each table.
const ROWS: u32 = 25;
/// Among so many newest invoices the reverted ones are looked for.
const REVERTED_AMONG: u32 = 250;
/// The kinds of payments that wait for a person.
const UNRESOLVED: [&str; 4] = ["ambiguous", "no_invoice", "other_payer", "too_large"];

/// What the page shows, read at one moment.
pub(super) struct Overview {
    unresolved: Vec<PaymentRow>,
    reverted: Vec<InvoiceRow>,
    dead: Vec<DeliveryView>,
    dead_count: u64,
    counts: Vec<(Status, u64)>,
    invoices: Vec<InvoiceRow>,
    deliveries: Vec<DeliveryView>,
    disabled: Vec<(String, String)>,
    chains: Vec<ChainView>,
    providers: Vec<ProviderView>,
    now: Timestamp,
}

impl Overview {
    pub(super) async fn read(state: &AppState) -> Result<Self, StoreError> {
        refresh(state).await?;
        let chains = chain_views(state).await?;
        let (providers, now) = (provider_views(state), state.clock.now());
        state.store.read(move |query| Self::read_rows(query, chains, providers, now)).await
    }

    fn read_rows(
        query: &impl Query,
        chains: Vec<ChainView>,
        providers: Vec<ProviderView>,
        now: Timestamp,
    ) -> Result<Self, StoreError> {
        let mut unresolved = Vec::new();
        for matching in UNRESOLVED {
            let filter = PaymentFilter { invoice: None, matching: Some(matching) };
            unresolved.extend(payment::list(query, &filter, None, ROWS)?);
        }
        let mut invoices = invoice::list(query, &InvoiceFilter::default(), None, REVERTED_AMONG)?;
        let reverted = invoices.iter().filter(|row| row.invoice.reverted && !row.invoice.is_final());
        let reverted = reverted.cloned().collect();
        invoices.truncate(usize::try_from(ROWS).unwrap_or(usize::MAX));
        let dead_rows =
            delivery::Filter { endpoint: None, state: Some(domain::delivery::DeliveryState::Dead) };
        let dead = delivery::list(query, &dead_rows, None, ROWS)?;
        let deliveries = delivery::list(query, &delivery::Filter::default(), None, ROWS)?;
        let endpoints = endpoint::list(query)?.into_iter();
        Ok(Self {
            unresolved,
            reverted,
            dead: delivery_views(query, &dead)?,
            dead_count: delivery::count_dead(query)?,
            counts: invoice::count_by_status(query)?,
            invoices,
            deliveries: delivery_views(query, &deliveries)?,
            disabled: endpoints.filter_map(|row| Some((row.url, row.disabled?))).collect(),
            chains,
            providers,
            now,
        })
    }

    fn is_quiet(&self) -> bool {
        self.unresolved.is_empty()
            && self.reverted.is_empty()
            && self.dead.is_empty()
            && self.disabled.is_empty()
            && self
                .chains
                .iter()
                .all(|chain| !chain.frozen && chain.stalled.is_none() && chain.disputed_claims == 0)
    }
}

/// The page at `/`.
pub(super) fn render(state: &AppState, seen: &Overview) -> Markup {
    let main = html! {
        header {
            h1 { "Quittance" }
            p.dim { "as of " time datetime=(seen.now) { (seen.now) } " " span #live {} }
            @if state.config.server.auth == Auth::Keys {
                form method="post" action="/session/end" { button.quiet type="submit" { "Sign out" } }
            }
        }
        (unresolved(state, seen))
        (figures(state, seen))
        (invoices(state, &seen.invoices))
        (chains(&seen.chains))
        (providers(&seen.providers))
        (deliveries("Deliveries", &seen.deliveries))
    };
    frame("Quittance", Some(10), Live::Events, &main)
}

fn unresolved(state: &AppState, seen: &Overview) -> Markup {
    html! {
        section.unresolved {
            h2 { "Unresolved" }
            @if seen.is_quiet() { p.good { "Nothing waits for a person." } }
            @for chain in &seen.chains {
                @if let Some(why) = &chain.frozen_reason {
                    p.bad { strong { (network(chain.id)) " is frozen: nothing settles. " } (why) }
                }
                @if let Some(why) = &chain.stalled { p.warn { strong { (network(chain.id)) " stands still. " } (why) } }
                @if chain.disputed_claims > 0 {
                    p.warn { strong { (network(chain.id)) ": " (chain.disputed_claims) " disputed claims. " } "They freeze only the invoices they could touch." }
                }
            }
            @for (url, why) in &seen.disabled { p.warn { strong { "An endpoint is disabled: " } (url) " (" (why) ")" } }
            @if !seen.unresolved.is_empty() { (payments(state, "Payments that no rule could place", &seen.unresolved)) }
            @if !seen.reverted.is_empty() {
                h3 { "Invoices with a payment that vanished" }
                (invoice_table(state, &seen.reverted))
            }
            @if seen.dead_count > 0 { (deliveries(&format!("Dead letters ({})", seen.dead_count), &seen.dead)) }
        }
    }
}

fn figures(state: &AppState, seen: &Overview) -> Markup {
    html! {
        section {
            h2 { "Figures" }
            dl.tiles {
                @for status in Status::ALL {
                    @let count = seen.counts.iter().find(|(of, _)| *of == status).map_or(0, |(_, count)| *count);
                    div { dt { (status) } dd { (count) } }
                }
                // Latencies stand in the table of providers.
                @for (name, value) in state.telemetry.views().iter().filter(|(name, _)| !name.starts_with("rpc_provider")) {
                    div { dt { (name) } dd { (value) } }
                }
            }
        }
    }
}

fn invoices(state: &AppState, rows: &[InvoiceRow]) -> Markup {
    html! {
        section {
            h2 { "Invoices" }
            @if rows.is_empty() { p.dim { "None yet." } } @else { (invoice_table(state, rows)) }
        }
    }
}

fn invoice_table(state: &AppState, rows: &[InvoiceRow]) -> Markup {
    html! {
        div.scroll { table {
            thead { tr { th { "Invoice" } th { "Status" } th { "Amount" } th { "Arrived" } th { "Network" } th { "Made" } } }
            tbody { @for row in rows {
                @let invoice = &row.invoice;
                tr {
                    td { a href={ "/invoices/" (invoice.id) } { code { (invoice.id) } } @if let Some(reference) = &row.reference { br; span.dim { (reference) } } }
                    td { (status_cell(row)) }
                    td { (amount(&state.config, invoice.chain, &invoice.asset, invoice.amount)) }
                    td { (amount(&state.config, invoice.chain, &invoice.asset, invoice.paid.seen)) }
                    td { (network(invoice.chain)) }
                    td { time datetime=(invoice.created_at) { (invoice.created_at) } }
                }
            } }
        } }
    }
}

fn status_cell(row: &InvoiceRow) -> Markup {
    let invoice = &row.invoice;
    let status = invoice.status();
    html! {
        span.state.(status.as_str()) { (status) }
        @if invoice.is_final() { " " span.flag { "final" } }
        @if invoice.is_overpaid() { " " span.flag.warn { "overpaid" } }
        @if invoice.is_late() { " " span.flag.warn { "late" } }
        @if invoice.reverted { " " span.flag.warn { "reverted" } }
    }
}

fn payments(state: &AppState, title: &str, rows: &[PaymentRow]) -> Markup {
    html! {
        h3 { (title) }
        div.scroll { table {
            thead { tr { th { "Payment" } th { "Why" } th { "Amount" } th { "Stage" } th { "From" } th { "To" } th { "Transaction" } th { "Block" } } }
            tbody { @for row in rows {
                @let transfer = &row.transfer;
                tr {
                    td { code { (row.id) } }
                    td { (row.matching.as_str()) @if let Matching::Ambiguous(ids) = &row.matching { @for id in ids { br; a href={ "/invoices/" (id) } { code { (id) } } } } }
                    td { (amount(&state.config, transfer.key.chain, &transfer.asset, transfer.amount)) }
                    td { (row.stage) " " span.dim { (row.level) } @if row.late { " " span.flag.warn { "late" } } }
                    td { code { (transfer.payer) } }
                    td { code { (transfer.recipient) } }
                    td { code { (transfer.key.tx) } }
                    td { (transfer.block.number) }
                }
            } }
        } }
    }
}

fn chains(chains: &[ChainView]) -> Markup {
    html! {
        section {
            h2 { "Chains" }
            div.scroll { table {
                thead { tr { th { "Chain" } th { "Processed" } th { "Head" } th { "Safe" } th { "Finalized" } th { "Known by" } th { "Quorum" } th { "State" } } }
                tbody { @for chain in chains {
                    tr {
                        td { (network(chain.id)) }
                        td { (or_dash(chain.last_processed_block)) }
                        td { (or_dash(chain.head)) }
                        td { (or_dash(chain.safe)) }
                        td { (or_dash(chain.finalized)) }
                        td { (chain.evidence_level.unwrap_or("–")) }
                        td { (chain.quorum) " of " (chain.groups) }
                        td { @if chain.frozen { span.bad { "frozen" } } @else if chain.stalled.is_some() { span.warn { "stalled" } } @else { span.good { "reading" } } }
                    }
                } }
            } }
        }
    }
}

fn providers(providers: &[ProviderView]) -> Markup {
    html! {
        section {
            h2 { "Providers" }
            div.scroll { table {
                thead { tr { th { "Provider" } th { "Group" } th { "State" } th { "Head" } th { "p50 / p95 ms" } th { "Calls" } th { "Failed" } th { "Last contradiction" } } }
                tbody { @for provider in providers {
                    tr {
                        td { (provider.name) br; span.dim { (network(provider.chain)) } }
                        td { (provider.group) }
                        td { span class=(if provider.state == "healthy" { "good" } else { "warn" }) { (provider.state) } }
                        td { (or_dash(provider.head)) }
                        td { @match &provider.latency_ms { Some(latency) => { (latency.p50) " / " (latency.p95) } None => { "–" } } }
                        td { (provider.calls) }
                        td { (provider.failures.values().sum::<u64>()) }
                        td { @match &provider.last_disagreement {
                            Some(last) => { span.bad { (last.kind) } @if let Some(block) = last.block { " at block " (block) } br; time.dim datetime=(last.at) { (last.at) } }
                            None => { "–" }
                        } }
                    }
                } }
            } }
        }
    }
}

fn deliveries(title: &str, rows: &[DeliveryView]) -> Markup {
    html! {
        section {
            h2 { (title) }
            @if rows.is_empty() { p.dim { "None yet." } } @else {
                div.scroll { table {
                    thead { tr { th { "Delivery" } th { "Event" } th { "Status" } th { "Attempts" } th { "Last answer" } th { "Happened" } } }
                    tbody { @for row in rows {
                        tr {
                            td { code { (row.id) } }
                            td { (row.event_type.unwrap_or("–")) }
                            td { span.state.(row.status) { (row.status) } @if let Some(reason) = row.dead_reason { " " span.dim { (reason) } } @if row.replayed { " " span.flag { "replayed" } } }
                            td { (row.attempts) }
                            td { @if let Some(status) = row.last_status { (status) " " } (row.last_error.as_deref().unwrap_or("")) }
                            td { time datetime=(row.created_at) { (row.created_at) } }
                        }
                    } }
                } }
            }
        }
    }
}

/// The page of one invoice: what was asked, what came, what was told.
pub(super) fn render_invoice(
    state: &AppState,
    row: &InvoiceRow,
    paid: &[PaymentRow],
    events: &[EventRow],
) -> Markup {
    let invoice = &row.invoice;
    let main = html! {
        header { h1 { "Invoice" } p { a href="/" { "All invoices" } } }
        section {
            dl {
                dt { "Id" } dd { code { (invoice.id) } }
                dt { "Status" } dd { (status_cell(row)) }
                dt { "Amount" } dd { (amount(&state.config, invoice.chain, &invoice.asset, invoice.amount)) }
                dt { "Arrived" } dd { (amount(&state.config, invoice.chain, &invoice.asset, invoice.paid.seen)) }
                dt { "Confirmed" } dd { (amount(&state.config, invoice.chain, &invoice.asset, invoice.paid.confirmed)) }
                dt { "Network" } dd { (network(invoice.chain)) }
                dt { "Recipient" } dd { code { (invoice.recipient) } }
                @if let Some(payer) = invoice.payer { dt { "Payer" } dd { code { (payer) } } }
                dt { "Confirmations" } dd { (invoice.confirmations) }
                dt { "Made" } dd { (invoice.created_at) }
                dt { "Expires" } dd { (invoice.expires_at) }
                @if let Some(reference) = &row.reference { dt { "Reference" } dd { (reference) } }
                @if let Some(metadata) = &row.metadata { dt { "Metadata" } dd { pre { (metadata) } } }
                dt { "Checkout" } dd { a href={ "/i/" (invoice.id) } { "the payer's page" } }
            }
        }
        section {
            @if paid.is_empty() { h2 { "Payments" } p.dim { "None." } } @else { (payments(state, "Payments", paid)) }
        }
        section {
            h2 { "Events" }
            @if events.is_empty() { p.dim { "None." } } @else { ol { @for event in events {
                li { (event.kind) " " span.dim { (event.created_at) " " code { (event.id) } } }
            } } }
        }
    };
    frame("Invoice", Some(10), Live::Events, &main)
}

fn or_dash(number: Option<u64>) -> String {
    number.map_or_else(|| "–".to_owned(), |number| number.to_string())
}
