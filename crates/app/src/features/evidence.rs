//! The quittance: a document that proves a payment, for someone who does not trust us to look it up.
//!
//! A bundle holds the evidence of every payment of an invoice and is signed, every byte. It is checked offline: the bytes
//! have to be exactly what was signed; the transfer has to follow from header, receipt and transaction; and that the
//! header is the chain's has to come from outside, as a block hash the checker trusts or as a key it trusts. A bundle
//! that merely agrees with itself proves nothing, and the answer says so.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use alloy_primitives::B256;
use alloy_primitives::hex;
use domain::id::{InvoiceId, PaymentId};
use domain::payment::Stage;
use domain::time::Timestamp;
use durable::store::secret::{self, SecretBytes};
use durable::store::{Query, StoreError, Tx, invoice, payment};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use outside::chain::{Evidence, EvidenceError, VerifiedTransfer, restore, verify};
use serde::{Deserialize, Serialize};

/// The name of the secret that signs bundles.
/// Payments read at a time.
const PAGE: u32 = 500;
const SECRET: &str = "evidence-signing-key";
/// Signed before the body, so that a signature of ours means nothing anywhere else.
const CONTEXT: &[u8] = b"quittance evidence bundle v1\n";

/// The public half of a signing key; spelt `ed25519:` and 64 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvidenceKey([u8; 32]);

/// A text that is no evidence key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an evidence key: expected `ed25519:` and 64 hex digits")]
pub struct InvalidEvidenceKey;

impl fmt::Display for EvidenceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ed25519:{}", hex::encode(self.0))
    }
}

impl FromStr for EvidenceKey {
    type Err = InvalidEvidenceKey;
    fn from_str(text: &str) -> Result<Self, InvalidEvidenceKey> {
        let digits = text.strip_prefix("ed25519:").ok_or(InvalidEvidenceKey)?;
        if digits.len() != 64 || digits.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(InvalidEvidenceKey);
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| InvalidEvidenceKey)?;
        Ok(Self(bytes))
    }
}

impl Serialize for EvidenceKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EvidenceKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What is signed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    version: u32,
    issued_at: Timestamp,
    key: EvidenceKey,
    invoice_id: InvoiceId,
    payments: Vec<PaymentPart>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PaymentPart {
    payment_id: PaymentId,
    stage: Stage,
    evidence: Evidence,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bundle {
    body: Body,
    signature: String,
}

/// Why there is no bundle.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NoBundle {
    /// The store's reason.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such invoice.
    #[error("there is no such invoice")]
    NoInvoice,
    /// Nothing was paid that is in the chain now.
    #[error("the invoice has no payment in the chain yet, so there is nothing to prove")]
    NoPayment,
}

/// The key that signs bundles of this database; made when it is first needed.
///
/// # Errors
/// The store's.
pub fn public_key(tx: &mut Tx) -> Result<EvidenceKey, StoreError> {
    Ok(EvidenceKey(signing_key(&secret::find_or_make(tx, SECRET)?)?.verifying_key().to_bytes()))
}

fn signing_key(secret: &SecretBytes) -> Result<SigningKey, StoreError> {
    let bytes =
        secret.expose().try_into().map_err(|_| StoreError::damaged("the evidence key has not 32 bytes"))?;
    Ok(SigningKey::from_bytes(bytes))
}

/// The signed bundle of an invoice, as bytes that must not be reformatted.
///
/// # Errors
/// See [`NoBundle`].
pub fn bundle(tx: &mut Tx, id: InvoiceId) -> Result<Vec<u8>, NoBundle> {
    invoice::find(tx, id)?.ok_or(NoBundle::NoInvoice)?;
    let mut payments = Vec::new();
    let mut after = None;
    loop {
        let page = payment::page_of_invoice(tx, id, after, PAGE)?;
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        for row in page.into_iter().filter(|row| row.stage != Stage::Reverted) {
            let Some(bytes) = payment::find_evidence(tx, row.id)? else { continue };
            let (chain, block) = (row.transfer.key.chain, row.transfer.block.hash);
            let Some(common) = payment::find_block_evidence(tx, chain, &block)? else { continue };
            let evidence = restore(&row.transfer, row.level, &common, &bytes).map_err(StoreError::damaged)?;
            payments.push(PaymentPart { payment_id: row.id, stage: row.stage, evidence });
        }
    }
    if payments.is_empty() {
        return Err(NoBundle::NoPayment);
    }
    let key = signing_key(&secret::find_or_make(tx, SECRET)?)?;
    let body = Body {
        version: 1,
        issued_at: tx.now(),
        key: EvidenceKey(key.verifying_key().to_bytes()),
        invoice_id: id,
        payments,
    };
    let unspeakable = |_| StoreError::damaged("a bundle cannot be spelt as JSON");
    let signature = key.sign(&signed_bytes(&body).map_err(unspeakable)?);
    let bundle = Bundle { body, signature: hex::encode(signature.to_bytes()) };
    Ok(serde_json::to_vec(&bundle).map_err(unspeakable)?)
}

fn signed_bytes(body: &Body) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = CONTEXT.to_vec();
    serde_json::to_writer(&mut bytes, body)?;
    Ok(bytes)
}

/// Why a bundle is rejected: it is not what anybody honest made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// It is not a bundle.
    #[error("this is not an evidence bundle: {0}")]
    NotABundle(String),
    /// It says the right things in other bytes than were signed.
    #[error("the file was reformatted or changed: its bytes are not the ones that were signed")]
    Reformatted,
    /// It is of another version.
    #[error("bundle version {0} is not known to this program")]
    Version(u32),
    /// The signature is not the key's.
    #[error("the signature does not fit: the bundle was changed, or not made by the key it names")]
    Signature,
    /// It holds no payment.
    #[error("the bundle holds no payment, so it proves nothing")]
    Empty,
    /// One transfer is listed more than once.
    #[error("payment {0} lists a transfer that the bundle has already listed")]
    Twice(PaymentId),
    /// The evidence contradicts itself.
    #[error("payment {0}: {1}")]
    Evidence(PaymentId, EvidenceError),
}

/// A bundle that holds together, and how far it can be trusted.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The invoice it is about.
    pub invoice_id: InvoiceId,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// Who signed it.
    pub key: EvidenceKey,
    /// Whether the checker trusts that key.
    pub key_trusted: bool,
    /// The payments, with what is proven of each.
    pub payments: Vec<CheckedPayment>,
}

/// One payment of a checked bundle.
#[derive(Debug, Clone)]
pub struct CheckedPayment {
    /// Its id.
    pub payment_id: PaymentId,
    /// What the evidence shows.
    pub transfer: VerifiedTransfer,
}

impl Checked {
    /// Whether every payment rests on something the checker trusts: the signing key, or a block hash from which
    /// the transfer follows.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        let stands = |payment: &CheckedPayment| payment.transfer.anchored && payment.transfer.is_proven();
        !self.payments.is_empty() && (self.key_trusted || self.payments.iter().all(stands))
    }
}

/// Checks a bundle offline, against block hashes and keys that the checker trusts.
///
/// # Errors
/// [`Rejected`] when it does not hold together. A bundle that holds and rests on nothing trusted is no
/// error here: see [`Checked::is_trusted`].
pub fn check(file: &[u8], anchors: &[B256], trusted: &[EvidenceKey]) -> Result<Checked, Rejected> {
    let file = file.strip_suffix(b"\n").unwrap_or(file);
    let bundle: Bundle =
        serde_json::from_slice(file).map_err(|error| Rejected::NotABundle(error.to_string()))?;
    let spelt = serde_json::to_vec(&bundle).map_err(|error| Rejected::NotABundle(error.to_string()))?;
    if spelt != file {
        return Err(Rejected::Reformatted);
    }
    let body = &bundle.body;
    if body.version != 1 {
        return Err(Rejected::Version(body.version));
    }
    check_signature(&bundle)?;
    if body.payments.is_empty() {
        return Err(Rejected::Empty);
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = body.payments.iter().find(|part| !seen.insert(part.evidence.transfer().key)) {
        return Err(Rejected::Twice(twice.payment_id));
    }
    let payments = body
        .payments
        .iter()
        .map(|part| {
            let hash = part.evidence.transfer().block.hash;
            let anchor = anchors.iter().copied().find(|anchor| *anchor == hash);
            let transfer =
                verify(&part.evidence, anchor).map_err(|error| Rejected::Evidence(part.payment_id, error))?;
            Ok(CheckedPayment { payment_id: part.payment_id, transfer })
        })
        .collect::<Result<_, Rejected>>()?;
    Ok(Checked {
        invoice_id: body.invoice_id,
        issued_at: body.issued_at,
        key: body.key,
        key_trusted: trusted.contains(&body.key),
        payments,
    })
}

fn check_signature(bundle: &Bundle) -> Result<(), Rejected> {
    let mut bytes = [0; 64];
    hex::decode_to_slice(&bundle.signature, &mut bytes).map_err(|_| Rejected::Signature)?;
    // Hex digits may be upper case for the decoder; for us there is one spelling.
    if hex::encode(bytes) != bundle.signature {
        return Err(Rejected::Reformatted);
    }
    let key = VerifyingKey::from_bytes(&bundle.body.key.0).map_err(|_| Rejected::Signature)?;
    let signed = signed_bytes(&bundle.body).map_err(|_| Rejected::Signature)?;
    key.verify_strict(&signed, &Signature::from_bytes(&bytes)).map_err(|_| Rejected::Signature)
}
