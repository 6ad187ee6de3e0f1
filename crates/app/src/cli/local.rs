//! Commands that need no server: configuration, checking quittances and webhooks offline, and the database.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use alloy_primitives::B256;
use clap::{Args, Subcommand};
use durable::store::Access;
use serde_json::{Value, json};

use super::keys::open_store;
use super::output::Output;
use super::{Failure, environment};
use crate::config::{self, DEFAULT_FILE, TEMPLATE};
use crate::features::evidence::{CheckedPayment, EvidenceKey, check};

#[derive(Debug, Args)]
pub(super) struct Init {
    /// Where to write it.
    #[arg(default_value = DEFAULT_FILE)]
    file: PathBuf,
}

impl Init {
    pub(super) fn run(self, output: Output) -> Result<(), Failure> {
        use std::io::Write as _;
        let shown = self.file.display();
        let mut file = std::fs::File::create_new(&self.file).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Failure::new(format!("{shown} is there already; nothing was written"))
            }
            _ => Failure::new(format!("{shown} cannot be written: {error}")),
        })?;
        file.write_all(TEMPLATE.as_bytes()).map_err(|error| Failure::new(format!("{shown}: {error}")))?;
        output.result(&json!({ "file": self.file }), || {
            format!("{shown} is written. Next: edit it, then `quittance check-config`, `quittance doctor`, `quittance serve`.")
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct CheckConfig {
    /// Show every value in use and where it came from. Secrets are not shown.
    #[arg(long)]
    show: bool,
}

impl CheckConfig {
    pub(super) fn run(self, file: Option<&Path>, output: Output) -> Result<(), Failure> {
        let loaded = config::load(file, &environment())?;
        let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
        let settings: Vec<Value> = loaded
            .settings
            .iter()
            .map(|setting| json!({ "key": setting.key, "value": setting.value, "origin": setting.origin.to_string() }))
            .collect();
        let mut said = json!({ "valid": true, "warnings": warnings });
        if self.show {
            said["settings"] = Value::from(settings);
        }
        output.result(&said, || {
            let mut lines: Vec<String> = Vec::new();
            if self.show {
                let width = loaded.settings.iter().map(|setting| setting.key.len()).max().unwrap_or(0);
                lines.extend(
                    loaded
                        .settings
                        .iter()
                        .map(|s| format!("{:width$} = {}   # {}", s.key, s.value, s.origin)),
                );
            }
            lines.extend(warnings.iter().map(|warning| format!("warning: {warning}")));
            lines.push("the configuration is valid".to_owned());
            lines.join("\n")
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct VerifyEvidence {
    /// The quittance, byte for byte as it was issued; `-` reads it from stdin.
    file: PathBuf,
    /// A block hash that you trust to be the chain's; may be given several times.
    #[arg(long, value_name = "BLOCKHASH")]
    anchor: Vec<B256>,
    /// An evidence key that you trust (`ed25519:…`); may be given several times.
    #[arg(long, value_name = "KEY")]
    trust: Vec<EvidenceKey>,
}

impl VerifyEvidence {
    pub(super) fn run(self, output: Output) -> Result<(), Failure> {
        let file = read_input(&self.file)?;
        let checked = check(&file, &self.anchor, &self.trust)
            .map_err(|error| Failure::new(format!("rejected: {error}")))?;
        let payments: Vec<Value> = checked.payments.iter().map(show_payment).collect();
        let trusted = checked.is_trusted();
        let said = json!({
            "trusted": trusted, "invoice_id": checked.invoice_id, "issued_at": checked.issued_at,
            "key": checked.key, "key_trusted": checked.key_trusted, "payments": payments,
        });
        output.result(&said, || {
            let mut lines = vec![format!(
                "invoice {} issued {} by {}",
                checked.invoice_id, checked.issued_at, checked.key
            )];
            lines.extend(checked.payments.iter().map(spell_payment));
            lines.join("\n")
        })?;
        if trusted {
            output.note(if checked.key_trusted {
                "the quittance holds, and is signed by a key that you trust"
            } else {
                "the transfers are in blocks that you trust; that they belong to this invoice is the signer's word"
            });
            return Ok(());
        }
        if self.anchor.is_empty() && self.trust.is_empty() {
            return Err(Failure::unknown(
                "the quittance agrees with itself, which proves nothing: name a block hash (--anchor) or an evidence key (--trust) that you trust",
            ));
        }
        Err(Failure::new("rejected: the quittance rests on none of the anchors and keys that you trust"))
    }
}

fn show_payment(payment: &CheckedPayment) -> Value {
    let (checked, transfer) = (&payment.transfer, &payment.transfer.transfer);
    json!({
        "payment_id": payment.payment_id, "chain": transfer.key.chain, "tx_hash": transfer.key.tx,
        "block": transfer.block.number, "block_hash": transfer.block.hash, "asset": transfer.asset,
        "payer": transfer.payer, "recipient": transfer.recipient, "amount": transfer.amount,
        "evidence_level": checked.level.as_str(), "anchored": checked.anchored,
        "proven": checked.proven, "unproven": checked.unproven,
    })
}

fn spell_payment(payment: &CheckedPayment) -> String {
    let (checked, transfer) = (&payment.transfer, &payment.transfer.transfer);
    format!(
        "{} of {} from {} to {}\n  in transaction {}, block {} ({}) of {}\n  {}{}; proven: {}; on the issuer's word: {}",
        transfer.amount,
        transfer.asset,
        transfer.payer,
        transfer.recipient,
        transfer.key.tx,
        transfer.block.number,
        transfer.block.hash,
        transfer.key.chain,
        checked.level,
        if checked.anchored { ", anchored" } else { "" },
        checked.proven.join(", "),
        checked.unproven.join(", "),
    )
}

/// The contents of a file, or of stdin for `-`.
pub(super) fn read_input(file: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut bytes).map(|_| ())
    } else {
        std::fs::read(file).map(|read| bytes = read)
    };
    read.map_err(|error| Failure::new(format!("{} cannot be read: {error}", file.display())))?;
    Ok(bytes)
}

#[derive(Debug, Subcommand)]
pub(super) enum Db {
    /// Read the whole database and say whether it is sound.
    Check,
    /// Bring the database up to this version of the program.
    Migrate,
}

impl Db {
    pub(super) async fn run(self, file: Option<&Path>, output: Output) -> Result<(), Failure> {
        let store = open_store(file)?;
        match self {
            Self::Check => {
                let faults = store.read(durable::store::health::check).await?;
                let said = json!({ "sound": faults.is_empty(), "faults": faults });
                output.result(&said, || {
                    if faults.is_empty() { "the database is sound".to_owned() } else { faults.join("\n") }
                })?;
                if faults.is_empty() { Ok(()) } else { Err(Failure::new("the database is damaged")) }
            }
            // Opening it as its owner has done it.
            Self::Migrate if store.access() == Access::Owner => {
                output.result(&json!({ "migrated": true }), || "the database is up to date".to_owned())
            }
            Self::Migrate => Err(Failure::new("another process runs on the database: stop it first")),
        }
    }
}
