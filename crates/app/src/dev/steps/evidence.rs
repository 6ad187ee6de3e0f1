//! Chapter 6: the quittance. The real one proves the payment against the chain's block hash; made-up ones do not.

use std::process::Stdio;
use std::sync::Arc;

use alloy_primitives::B256;
use bytes::Bytes;
use tokio::process::Command;

use super::providers::forge;
use crate::dev::claims::{Stuck, Verdict};
use crate::dev::naive::Issued;
use crate::dev::server::{NewInvoice, Server, Setup};
use crate::dev::tour::Tour;
use crate::dev::world::{BETA, GROUPS};
use crate::features::evidence::{EvidenceKey, check};

/// In how many places of a bundle a bit is changed.
const CHANGES: usize = 400;

pub(super) async fn play(tour: &mut Tour, hard_won: &Issued) -> Result<(), Stuck> {
    tour.teller.chapter("6. The quittance");
    let bundle = tour.server.evidence(&hard_won.id).await?;
    let key: EvidenceKey =
        tour.server.evidence_key().await?.parse().map_err(|error| Stuck::new("an evidence key", error))?;
    let block_hash = real(tour, hard_won, &bundle).await?;
    changed(tour, &bundle, block_hash, key);
    forged(tour, key).await
}

/// The bundle of the payment that one honest provider could prove, against the hash the chain itself has.
async fn real(tour: &mut Tour, paid: &Issued, bundle: &Bytes) -> Result<B256, Stuck> {
    let seen = tour.server.invoice(&paid.id).await?;
    let number = seen.payments.first().map(|payment| payment.block).unwrap_or_default();
    let hash = tour
        .world
        .chain
        .block(number)
        .map(|block| block.hash())
        .ok_or_else(|| Stuck::new(format!("block {number} of the payment"), "no such block"))?;
    let verdict = match check(bundle, &[hash], &[]) {
        Ok(checked) => {
            let amount: Vec<String> =
                checked.payments.iter().map(|payment| payment.transfer.transfer.amount.to_string()).collect();
            Verdict::that(checked.is_trusted(), "a proof that rests on the block hash", "one that does not")
                .and(Verdict::same(paid.amount.to_string(), amount.join(",")))
        }
        Err(error) => Verdict::that(false, "a bundle that holds", error),
    };
    tour.teller.claim(
        "the real one proves the payment offline, against nothing but the hash of its block",
        format!("{} bytes", bundle.len()),
        verdict,
    );

    let file = tour.directory.join("real.quittance.json");
    std::fs::write(&file, bundle).map_err(|error| Stuck::new("a file can be written", error))?;
    let anchored = verify_by_command(&file, Some(hash)).await?;
    let unanchored = verify_by_command(&file, None).await?;
    tour.teller.claim(
        "`quittance verify-evidence` says the same, and says that it cannot know when it is given no anchor",
        format!("exit codes {anchored} and {unanchored}"),
        Verdict::same("0 and 8".to_owned(), format!("{anchored} and {unanchored}")),
    );
    Ok(hash)
}

/// Runs the command as a third party would. Answers its exit code.
async fn verify_by_command(file: &std::path::Path, anchor: Option<B256>) -> Result<i32, Stuck> {
    let failed = |error: std::io::Error| Stuck::new("`quittance verify-evidence` runs", error);
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.arg("verify-evidence").arg(file);
    if let Some(anchor) = anchor {
        command.arg("--anchor").arg(anchor.to_string());
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let status = command.status().await.map_err(failed)?;
    Ok(status.code().unwrap_or(-1))
}

/// Bits are changed all over the bundle: every change has to be noticed, whatever is trusted.
fn changed(tour: &mut Tour, bundle: &Bytes, hash: B256, key: EvidenceKey) {
    let step = (bundle.len() / CHANGES).max(1);
    let mut accepted = Vec::new();
    let mut tried = 0;
    for place in (0..bundle.len()).step_by(step) {
        let mut forged = bundle.to_vec();
        forged[place] ^= 1 << (place % 7);
        tried += 1;
        if check(&forged, &[hash], &[key]).is_ok() {
            accepted.push(format!("byte {place}"));
        }
    }
    tour.teller.claim(
        "a bundle in which one bit was changed is rejected",
        format!("{tried} changes"),
        Verdict::none("every change rejected", &accepted),
    );
}

/// A forger runs this very program, with the liar as its only provider: what it then signs agrees with itself in
/// every hash, and is still no proof.
async fn forged(tour: &mut Tour, key: EvidenceKey) -> Result<(), Stuck> {
    let victim = tour.invoice().await?;
    forge(tour, BETA, &victim);
    let mut fooled = fooled_server(tour)?;
    fooled.spawn()?;
    fooled.ready().await?;
    let new = NewInvoice { amount: victim.amount, recipient: victim.recipient, reference: "forged" };
    let made = fooled.create_invoice(new, "forged").await?;
    let block = tour.mine().await;
    tour.mine().await;
    fooled.wait_for_invoice(&made.id, "settled", |seen| seen.status == "settled").await?;
    let bundle = fooled.evidence(&made.id).await?;
    fooled.kill().await;
    tour.world.heal().await.map_err(|error| Stuck::new("the providers come back", error))?;

    let real_hash = tour.world.chain.block(block.number).map(|block| block.hash()).unwrap_or_default();
    let alone = check(&bundle, &[], &[]);
    let anchored = check(&bundle, &[real_hash], &[key]).is_ok_and(|checked| checked.is_trusted());
    tour.teller.claim(
        "a forged quittance, signed and right in every hash, is not believed",
        format!(
            "made by this program with {} as its only provider; by itself it {}",
            GROUPS[BETA],
            if alone.is_ok() { "holds together" } else { "does not even hold together" },
        ),
        Verdict::that(alone.is_ok(), "a forgery worth the name", "one that contradicts itself")
            .and(Verdict::that(!anchored, "no trust", "trust")),
    );
    let seen = tour.server.invoice(&victim.id).await?;
    tour.teller.claim(
        format!("one provider is not enough: the same program with that provider alone took the invoice for settled; with {} it is open", GROUPS.len()),
        format!("{} paid on the chain", tour.world.dollars_of(victim.recipient)),
        Verdict::same("open 0".to_owned(), format!("{} {}", seen.status, seen.amount_paid)),
    );
    Ok(())
}

fn fooled_server(tour: &Tour) -> Result<Server, Stuck> {
    let directory = tour.directory.join("fooled");
    let listen = super::super::free(([127, 0, 0, 1], 0).into())
        .map_err(|error| Stuck::new("a free loopback port", error))?;
    let setup = Setup {
        directory: &directory,
        listen,
        providers: vec![(GROUPS[BETA], &tour.world.faces[BETA])],
        quorum: 1,
        start_block: tour.world.chain.head().number,
    };
    Server::new(&setup, Arc::clone(&tour.clock))
}
