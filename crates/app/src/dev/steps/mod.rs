//! The chapters of the tour, one file each, in the order in which they are played.
//!
//! A chapter that cannot come to its end is a claim that did not hold, and the tour stops there: what follows would
//! judge a world that nobody meant.

mod audit;
mod evidence;
mod kill;
mod merchant_away;
mod pay;
mod providers;
mod reorg;

use super::claims::Stuck;
use super::naive::Comparison;
use super::tour::Tour;

/// What should have been told of an invoice whose payment was taken back and came again.
const RETURNED: &[&str] =
    &["invoice.detected", "invoice.settled", "invoice.reverted", "invoice.detected", "invoice.settled"];
/// The same, when it never came again.
const VANISHED: &[&str] = &["invoice.detected", "invoice.settled", "invoice.reverted"];
/// What should have been told of every other invoice that was paid.
const PAID: &[&str] = &["invoice.detected", "invoice.settled"];

/// Plays every chapter. Answers what the naive readers made of it, if it came so far.
pub(super) async fn play(tour: &mut Tour) -> Vec<Comparison> {
    match chapters(tour).await {
        Ok(comparison) => comparison,
        Err(stuck) => {
            tour.teller.stuck(&stuck);
            let log = format!("      log:      {}", tour.server.log.display());
            tour.teller.say(log);
            Vec::new()
        }
    }
}

async fn chapters(tour: &mut Tour) -> Result<Vec<Comparison>, Stuck> {
    pay::play(tour).await?;
    let hard_won = providers::play(tour).await?;
    let reorged = reorg::play(tour).await?;
    kill::play(tour).await?;
    merchant_away::play(tour).await?;
    evidence::play(tour, &hard_won).await?;
    audit::play(tour, &reorged).await
}
