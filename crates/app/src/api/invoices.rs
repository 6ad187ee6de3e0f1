//! Invoices over HTTP: make, list, show, withdraw.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use domain::chain::{Asset, ChainId, Confirmations, parse_address};
use domain::id::InvoiceId;
use domain::invoice::Status;
use domain::money::Amount;
use domain::time::Timestamp;
use durable::store::invoice::{Filter, InvoiceRow};
use durable::store::{invoice, payment};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::auth::{Reads, Writes};
use super::cursor::{self, List};
use super::idempotency::Once;
use super::input::{Body, Parameters, Text, check_data, check_words, parse_id};
use super::problem::Problem;
use super::{AppState, Page, Refusals};
use crate::config::{ChainConfig, Config};
use crate::features::invoice::{NewInvoice, cancel, create};
use crate::view::{InvoiceView, PaymentView};

/// The most bytes of a reference.
const REFERENCE_BYTES: usize = 255;
/// The most bytes of metadata, as JSON.
const METADATA_BYTES: usize = 16 * 1024;
/// How long an invoice is open when nothing is said.
const USUAL_LIFE_SECONDS: u64 = 24 * 60 * 60;
/// The longest an invoice may be open.
const LONGEST_LIFE_SECONDS: u64 = 10 * 366 * 24 * 60 * 60;

/// What someone should pay.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateInvoice {
    /// CAIP-2 chain; one of those in `GET /v1/chains`.
    #[schema(value_type = String, example = "eip155:84532")]
    chain: Text,
    /// `native`, a token's address, a CAIP-19 asset of the chain, or a symbol from the configuration.
    #[schema(value_type = String, example = "0x036CbD53842c5426634e7929541eC2318f3dCF7e")]
    asset: Text,
    /// Decimal integer in base units, as a string.
    #[schema(value_type = String, example = "2500000")]
    amount: Text,
    /// Who is to be paid: an address of this invoice's own is best. Mixed case must be the EIP-55 checksum.
    #[schema(value_type = String)]
    recipient: Text,
    /// The only payer that counts.
    #[schema(value_type = Option<String>)]
    payer: Option<Text>,
    /// Your own reference, up to 255 bytes.
    #[schema(value_type = Option<String>)]
    reference: Option<Text>,
    /// Payments in blocks after this time are late (RFC 3339). Default: in 24 hours.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Text>,
    /// Instead of `expires_at`: so many seconds from now.
    #[schema(example = 900)]
    expires_in: Option<u64>,
    /// When a payment counts as confirmed: a number of blocks, `safe` or `finalized`. Default: the chain's.
    #[schema(value_type = Option<String>)]
    confirmations: Option<ConfirmationsText>,
    /// Your own data: a JSON object of up to 16 KiB.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Box<RawValue>>,
}

/// A number or a word.
#[derive(Debug)]
struct ConfirmationsText(String);

impl<'de> Deserialize<'de> for ConfirmationsText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(text) => Ok(Self(text)),
            serde_json::Value::Number(number) => Ok(Self(number.to_string())),
            _ => Err(serde::de::Error::custom("must be a number of blocks, \"safe\" or \"finalized\"")),
        }
    }
}

/// An invoice with its links.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct InvoiceAnswer {
    #[serde(flatten)]
    invoice: InvoiceView,
    /// Where the payer can pay.
    checkout_url: String,
}

/// An invoice with its links and payments.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct InvoiceDetail {
    #[serde(flatten)]
    invoice: InvoiceAnswer,
    /// Its payments, oldest first.
    payments: Vec<PaymentView>,
}

fn answer_of(row: &InvoiceRow, public_url: &str) -> InvoiceAnswer {
    let checkout_url = format!("{public_url}/i/{}", row.invoice.id);
    InvoiceAnswer { invoice: InvoiceView::of(row), checkout_url }
}

impl CreateInvoice {
    fn parse(self, config: &Config, now: Timestamp) -> Result<NewInvoice, Problem> {
        let chain = known_chain(&self.chain, config)?;
        let asset = parse_asset(&self.asset, chain)?;
        let amount: Amount = self.amount.parse("amount")?;
        if amount.is_zero() {
            return Err(Problem::field("amount", "must be more than 0"));
        }
        let recipient = address("recipient", &self.recipient)?;
        if asset == Asset::Token(recipient) {
            return Err(Problem::field(
                "recipient",
                "is the token's own contract: what is sent there is lost",
            ));
        }
        let payer = self.payer.as_ref().map(|payer| address("payer", payer)).transpose()?;
        let confirmations = match &self.confirmations {
            None => chain.confirmations,
            Some(text) => parse_confirmations(&text.0)?,
        };
        if let Some(reference) = &self.reference {
            check_words("reference", &reference.0, REFERENCE_BYTES)?;
        }
        if let Some(metadata) = &self.metadata {
            check_data("metadata", metadata, METADATA_BYTES)?;
        }
        Ok(NewInvoice {
            chain: chain.id,
            asset,
            amount,
            recipient,
            payer,
            confirmations,
            expires_at: expiry(self.expires_at.as_ref(), self.expires_in, now)?,
            reference: self.reference.map(|reference| reference.0),
            metadata: self.metadata.map(|metadata| metadata.get().to_owned()),
        })
    }
}

fn known_chain<'c>(text: &Text, config: &'c Config) -> Result<&'c ChainConfig, Problem> {
    let id: ChainId = text.parse("chain")?;
    config.chains.iter().find(|chain| chain.id == id).ok_or_else(|| {
        let known: Vec<String> = config.chains.iter().map(|chain| chain.id.to_string()).collect();
        Problem::field("chain", format!("{id} is not read here; known: {}", known.join(", ")))
    })
}

fn parse_asset(text: &Text, chain: &ChainConfig) -> Result<Asset, Problem> {
    let by_symbol = chain.assets.iter().find(|(_, asset)| asset.symbol == text.0).map(|(asset, _)| *asset);
    let by_name = || Asset::parse_on(chain.id, &text.0).ok();
    by_symbol.or_else(by_name).ok_or_else(|| {
        let checked = text.0.rsplit(':').next().map(parse_address);
        let detail = match checked {
            Some(Err(error @ domain::chain::InvalidAddress::Checksum)) => error.to_string(),
            _ => "must be `native`, a token's address, a CAIP-19 asset of this chain, or a configured symbol"
                .to_owned(),
        };
        Problem::field("asset", detail)
    })
}

fn address(field: &str, text: &Text) -> Result<domain::chain::Address, Problem> {
    parse_address(&text.0).map_err(|error| Problem::field(field, error.to_string()))
}

fn parse_confirmations(text: &str) -> Result<Confirmations, Problem> {
    let expected = "must be a number of blocks from 1 to 10000, \"safe\" or \"finalized\"";
    text.parse().map_err(|_| Problem::field("confirmations", expected))
}

fn expiry(at: Option<&Text>, within: Option<u64>, now: Timestamp) -> Result<Timestamp, Problem> {
    let latest = now + std::time::Duration::from_secs(LONGEST_LIFE_SECONDS);
    let (field, at) = match (at, within) {
        (Some(_), Some(_)) => return Err(Problem::field("expires_in", "expires_at is given too: keep one")),
        (Some(text), None) => ("expires_at", text.parse("expires_at")?),
        (None, within) => {
            let seconds = within.unwrap_or(USUAL_LIFE_SECONDS).min(LONGEST_LIFE_SECONDS + 1);
            ("expires_in", now + std::time::Duration::from_secs(seconds))
        }
    };
    if at <= now {
        return Err(Problem::field(field, "must be in the future"));
    }
    if at > latest {
        return Err(Problem::field(field, "must be within 10 years"));
    }
    Ok(at)
}

/// Makes an invoice.
#[utoipa::path(post, path = "/v1/invoices", tag = "invoices", request_body = CreateInvoice,
    params(("Idempotency-Key" = Option<String>, Header, description = "Repeats of the request get the first answer")),
    responses((status = 201, description = "Made", body = InvoiceAnswer), Refusals), security(("key" = ["write"])))]
pub(super) async fn post_invoice(
    State(state): State<AppState>,
    Writes(caller): Writes,
    once: Once,
    body: Body<CreateInvoice>,
) -> Result<Response, Problem> {
    let new = once.judge(body.value.parse(&state.config, state.clock.now()))?;
    let public_url = state.config.server.public_url.clone();
    once.answer(&state, &caller, &body.bytes, StatusCode::CREATED, move |tx| {
        let new = new.as_ref().map_err(Clone::clone)?;
        let row = create(tx, new)?;
        tracing::info!(invoice_uuid = %row.invoice.id, chain = %new.chain, "invoice made");
        Ok(answer_of(&row, &public_url))
    })
    .await
}

/// Invoices, newest first.
#[utoipa::path(get, path = "/v1/invoices", tag = "invoices",
    params(("status" = Option<String>, Query, description = "Only this status"), ("reference" = Option<String>, Query, description = "Only this reference"),
        ("after" = Option<String>, Query, description = "The `next` of the page before"), ("limit" = Option<u32>, Query, description = "1 to 250, default 50")),
    responses((status = 200, description = "A page", body = Page<InvoiceAnswer>), Refusals), security(("key" = ["read"])))]
pub(super) async fn list_invoices(
    State(state): State<AppState>,
    _: Reads,
    mut parameters: Parameters,
) -> Result<Json<Page<InvoiceAnswer>>, Problem> {
    let status: Option<Status> = match parameters.text("status")? {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| {
            let known: Vec<&str> = Status::ALL.iter().map(|status| status.as_str()).collect();
            Problem::field("status", format!("must be one of {}", known.join(", ")))
        })?),
    };
    let filter = Filter { status, reference: parameters.text("reference")? };
    let before = match parameters.text("after")? {
        None => None,
        Some(text) => Some(InvoiceId::from_bytes(cursor::parse(List::Invoices, "after", &text)?)),
    };
    let limit = parameters.limit()?;
    parameters.finish()?;
    let rows = state.store.read(move |query| invoice::list(query, &filter, before, limit + 1)).await?;
    let public_url = &state.config.server.public_url;
    let place = |row: &InvoiceRow| cursor::encode(List::Invoices, row.invoice.id.as_bytes());
    Ok(Json(Page::of(&rows, limit, place, |row| answer_of(row, public_url))))
}

/// One invoice, with its payments.
#[utoipa::path(get, path = "/v1/invoices/{id}", tag = "invoices", params(("id" = String, Path, description = "The invoice's id")),
    responses((status = 200, description = "The invoice", body = InvoiceDetail), Refusals), security(("key" = ["read"])))]
pub(super) async fn show_invoice(
    State(state): State<AppState>,
    _: Reads,
    Path(id): Path<String>,
) -> Result<Json<InvoiceDetail>, Problem> {
    let id: InvoiceId = parse_id("invoice", &id)?;
    let found = state
        .store
        .read(move |query| -> Result<_, Problem> {
            let row = invoice::find(query, id)?.ok_or_else(|| Problem::missing("invoice"))?;
            Ok((row, payment::list_of_invoice(query, id)?))
        })
        .await;
    let (row, payments) = found?;
    let invoice = answer_of(&row, &state.config.server.public_url);
    Ok(Json(InvoiceDetail { invoice, payments: payments.iter().map(PaymentView::of).collect() }))
}

/// Withdraws an invoice for which no money was seen.
#[utoipa::path(post, path = "/v1/invoices/{id}/cancel", tag = "invoices", params(("id" = String, Path, description = "The invoice's id")),
    responses((status = 200, description = "Withdrawn", body = InvoiceAnswer), Refusals), security(("key" = ["write"])))]
pub(super) async fn cancel_invoice(
    State(state): State<AppState>,
    Writes(caller): Writes,
    once: Once,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id: InvoiceId = parse_id("invoice", &id)?;
    let public_url = state.config.server.public_url.clone();
    once.answer(&state, &caller, &[], StatusCode::OK, move |tx| {
        let row = cancel(tx, id)?;
        tracing::info!(invoice_uuid = %id, "invoice withdrawn");
        Ok(answer_of(&row, &public_url))
    })
    .await
}
