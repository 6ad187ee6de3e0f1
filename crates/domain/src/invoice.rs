//! An invoice: what someone should pay, and what the chain says was paid.
//!
//! The status is derived from sums of payments and from proven chain time by one function;
//! [`Invoice::observe`] applies one fact, refuses what cannot be, and says which events follow. Nothing expires by the
//! machine's clock: an invoice expires when the *chain's* proven time has passed, so that a watcher
//! that was away cannot expire an invoice that was paid in time.
//!
//! Once final (settled by finalized payments alone) no fact leads to another status.

use std::fmt;
use std::str::FromStr;

use crate::chain::{Address, Asset, ChainId, Confirmations, InvalidWord};
use crate::event::EventType;
use crate::id::InvoiceId;
use crate::money::{Amount, OutOfRange};
use crate::payment::Stage;
use crate::time::Timestamp;
use crate::wire::serde_as_text;

/// Where an invoice stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Nothing was seen.
    Open,
    /// A payment made in time is in a proven block and not yet confirmed.
    Detected,
    /// All that was seen is confirmed, and it is less than the amount.
    Confirmed,
    /// Confirmed payments cover the amount.
    Settled,
    /// Expired with a part confirmed.
    Underpaid,
    /// Expired with nothing paid in time.
    Expired,
    /// Withdrawn before anything was seen.
    Canceled,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 7] = [
        Self::Open,
        Self::Detected,
        Self::Confirmed,
        Self::Settled,
        Self::Underpaid,
        Self::Expired,
        Self::Canceled,
    ];

    /// The spelling outside.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Detected => "detected",
            Self::Confirmed => "confirmed",
            Self::Settled => "settled",
            Self::Underpaid => "underpaid",
            Self::Expired => "expired",
            Self::Canceled => "canceled",
        }
    }

    /// Whether the invoice still waits for money.
    #[must_use]
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Open | Self::Detected | Self::Confirmed)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Status {
    type Err = InvalidWord;
    fn from_str(text: &str) -> Result<Self, InvalidWord> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or(InvalidWord)
    }
}

serde_as_text!(Status);

/// Sums of the invoice's payments that are in the chain now. Each holds the next:
/// `seen ≥ confirmed ≥ finalized`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// In proven blocks.
    pub seen: Amount,
    /// Of these, confirmed.
    pub confirmed: Amount,
    /// Of these, finalized.
    pub finalized: Amount,
}

/// What someone should pay, and how far that has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invoice {
    /// Its id.
    pub id: InvoiceId,
    /// On which chain.
    pub chain: ChainId,
    /// In which asset.
    pub asset: Asset,
    /// How much, in base units; never zero.
    pub amount: Amount,
    /// To whom.
    pub recipient: Address,
    /// By whom, if only this payer counts.
    pub payer: Option<Address>,
    /// When a payment counts as confirmed.
    pub confirmations: Confirmations,
    /// When it was made.
    pub created_at: Timestamp,
    /// The chain's agreed height when it was made: money in blocks up to it came earlier. None while the height is
    /// not known, because the chain could not be read then.
    pub created_block: Option<u64>,
    /// Payments in blocks with a later time are late.
    pub expires_at: Timestamp,
    /// Payments made in time.
    pub paid: Tally,
    /// Payments made late. They never settle an invoice by themselves.
    pub late: Tally,
    /// The chain's proven time has passed `expires_at`.
    pub expired: bool,
    /// The merchant withdrew it.
    pub canceled: bool,
    /// A payment that had been told of vanished at least once.
    pub reverted: bool,
    /// How many events it has had: the `sequence` of the last one.
    pub sequence: u64,
}

/// Something the chain, the merchant or proven time says about an invoice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact {
    /// A payment is in a proven block.
    Seen {
        /// How much.
        amount: Amount,
        /// Made after expiry or cancellation.
        late: bool,
    },
    /// A seen payment is confirmed.
    Confirmed {
        /// How much.
        amount: Amount,
        /// As when it was seen.
        late: bool,
    },
    /// A confirmed payment is in a finalized block.
    Finalized {
        /// How much.
        amount: Amount,
        /// As when it was seen.
        late: bool,
    },
    /// A payment is no longer in the chain.
    Reverted {
        /// How much.
        amount: Amount,
        /// As when it was seen.
        late: bool,
        /// How far it had come.
        stage: Stage,
    },
    /// The merchant takes a late payment as if it had been made in time.
    LateAccepted {
        /// How much.
        amount: Amount,
        /// How far it has come.
        stage: Stage,
    },
    /// The chain's proven time has passed `expires_at`.
    Expired,
    /// The merchant withdraws the invoice.
    Canceled,
}

/// A fact that cannot be true of this invoice, or that may not happen to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Money was seen: it has to run its course.
    #[error("a payment was already seen, so the invoice cannot be canceled")]
    MoneySeen,
    /// It is already closed.
    #[error("the invoice is already {0}")]
    Closed(Status),
    /// Whether it was paid is disputed: that has to be decided first.
    #[error("a disputed payment may be for this invoice, so it cannot be canceled now")]
    Disputed,
    /// A finalized payment cannot vanish unless finality itself is broken.
    #[error("a finalized payment was said to be reverted")]
    FinalityContradicted,
    /// More would be confirmed than seen, or finalized than confirmed.
    #[error("the sums of the invoice's payments do not hold: {0}")]
    Inconsistent(&'static str),
    /// A sum left the range of amounts.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
}

impl Tally {
    fn apply(&mut self, amount: Amount, stage: Stage) -> Result<(), Refusal> {
        match stage {
            Stage::Detected => self.seen = self.seen.plus(amount)?,
            Stage::Confirmed => {
                self.confirmed = self.confirmed.plus(amount)?;
                if self.confirmed > self.seen {
                    return Err(Refusal::Inconsistent("more is confirmed than was seen"));
                }
            }
            Stage::Final => {
                self.finalized = self.finalized.plus(amount)?;
                if self.finalized > self.confirmed {
                    return Err(Refusal::Inconsistent("more is finalized than was confirmed"));
                }
            }
            Stage::Reverted => {
                return Err(Refusal::Inconsistent("a reverted payment is not counted"));
            }
        }
        Ok(())
    }

    /// Takes a payment that had come as far as `stage` out of every sum that holds it.
    fn withdraw(&mut self, amount: Amount, stage: Stage) -> Result<(), Refusal> {
        let less = |sum: Amount| {
            sum.minus(amount).map_err(|_| Refusal::Inconsistent("more is withdrawn than was seen"))
        };
        if stage == Stage::Reverted {
            return Err(Refusal::Inconsistent("the payment was withdrawn before"));
        }
        if stage == Stage::Final {
            self.finalized = less(self.finalized)?;
        }
        if stage >= Stage::Confirmed {
            self.confirmed = less(self.confirmed)?;
        }
        self.seen = less(self.seen)?;
        let holds = self.seen >= self.confirmed && self.confirmed >= self.finalized;
        if holds { Ok(()) } else { Err(Refusal::Inconsistent("more is confirmed than is left")) }
    }

    /// Adds a payment that has already come as far as `stage`.
    fn admit(&mut self, amount: Amount, stage: Stage) -> Result<(), Refusal> {
        let steps: &[Stage] = match stage {
            Stage::Reverted => {
                return Err(Refusal::Inconsistent("a reverted payment is not counted"));
            }
            Stage::Detected => &[Stage::Detected],
            Stage::Confirmed => &[Stage::Detected, Stage::Confirmed],
            Stage::Final => &[Stage::Detected, Stage::Confirmed, Stage::Final],
        };
        steps.iter().try_for_each(|step| self.apply(amount, *step))
    }
}

impl Invoice {
    /// Where it stands: a total function of its sums, proven time and the merchant's word.
    #[must_use]
    pub fn status(&self) -> Status {
        let Tally { seen, confirmed, .. } = self.paid;
        if confirmed >= self.amount {
            Status::Settled
        } else if self.canceled {
            Status::Canceled
        } else if seen > confirmed {
            Status::Detected
        } else if self.expired {
            if confirmed.is_zero() { Status::Expired } else { Status::Underpaid }
        } else if confirmed.is_zero() {
            Status::Open
        } else {
            Status::Confirmed
        }
    }

    /// Whether more than the amount is confirmed.
    #[must_use]
    pub fn is_overpaid(&self) -> bool {
        self.paid.confirmed > self.amount
    }

    /// Whether money came late.
    #[must_use]
    pub fn is_late(&self) -> bool {
        !self.late.seen.is_zero()
    }

    /// Whether finalized payments alone cover the amount: nothing can change the status any more.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.paid.finalized >= self.amount
    }

    /// What is still to be seen.
    #[must_use]
    pub fn remaining(&self) -> Amount {
        self.amount.remaining_after(self.paid.seen)
    }

    /// Whether a payment in a block of this time would be late.
    #[must_use]
    pub fn would_be_late(&self, block_time: Timestamp) -> bool {
        self.canceled || block_time > self.expires_at
    }

    /// Applies one fact: the invoice after it, and the events that follow, in order.
    ///
    /// # Errors
    /// A [`Refusal`], and then nothing changes.
    pub fn observe(&self, fact: Fact) -> Result<(Self, Vec<EventType>), Refusal> {
        let mut after = self.clone();
        match fact {
            Fact::Seen { amount, late } => after.tally(late).apply(amount, Stage::Detected)?,
            Fact::Confirmed { amount, late } => after.tally(late).apply(amount, Stage::Confirmed)?,
            Fact::Finalized { amount, late } => after.tally(late).apply(amount, Stage::Final)?,
            Fact::Reverted { stage: Stage::Final, .. } => return Err(Refusal::FinalityContradicted),
            Fact::Reverted { amount, late, stage } => {
                after.tally(late).withdraw(amount, stage)?;
                after.reverted = true;
            }
            Fact::LateAccepted { amount, stage } => after.accept_late(amount, stage)?,
            Fact::Expired => after.expired = true,
            Fact::Canceled => after.cancel()?,
        }
        let events = self.events_of(fact, &after);
        after.sequence = after.sequence.saturating_add(events.len() as u64);
        Ok((after, events))
    }

    fn tally(&mut self, late: bool) -> &mut Tally {
        if late { &mut self.late } else { &mut self.paid }
    }

    fn accept_late(&mut self, amount: Amount, stage: Stage) -> Result<(), Refusal> {
        self.late.withdraw(amount, stage)?;
        self.paid.admit(amount, stage)
    }

    fn cancel(&mut self) -> Result<(), Refusal> {
        let status = self.status();
        if !status.is_active() {
            return Err(Refusal::Closed(status));
        }
        if !self.paid.seen.is_zero() {
            return Err(Refusal::MoneySeen);
        }
        self.canceled = true;
        Ok(())
    }

    /// First what the fact itself is, then what the invoice became by it.
    fn events_of(&self, fact: Fact, after: &Self) -> Vec<EventType> {
        let mut events = Vec::new();
        match fact {
            Fact::Seen { late: false, .. } => events.push(EventType::InvoiceDetected),
            Fact::Confirmed { late: true, .. } => events.push(EventType::InvoiceLatePayment),
            Fact::Reverted { .. } => events.push(EventType::InvoiceReverted),
            _ => {}
        }
        let (was, is) = (self.status(), after.status());
        let grew = after.paid.confirmed > self.paid.confirmed;
        if was != is || (grew && is != Status::Settled) {
            events.extend(match is {
                Status::Settled => Some(EventType::InvoiceSettled),
                Status::Confirmed if grew => Some(EventType::InvoiceConfirmed),
                Status::Underpaid => Some(EventType::InvoiceUnderpaid),
                Status::Expired => Some(EventType::InvoiceExpired),
                Status::Canceled => Some(EventType::InvoiceCanceled),
                Status::Detected if grew => Some(EventType::InvoiceConfirmed),
                Status::Open | Status::Detected | Status::Confirmed => None,
            });
        }
        if grew && after.is_overpaid() {
            events.push(EventType::InvoiceOverpaid);
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Chance;
    use proptest::prelude::*;

    fn invoice(amount: u64) -> Invoice {
        Invoice {
            id: InvoiceId::mint(Timestamp::EPOCH, &Chance::from_seed(0)),
            chain: ChainId::eip155(1),
            asset: Asset::Native,
            amount: amount.into(),
            recipient: Address::repeat_byte(1),
            payer: None,
            confirmations: Confirmations::Depth(2),
            created_at: Timestamp::EPOCH,
            created_block: Some(0),
            expires_at: Timestamp::from_seconds(100),
            paid: Tally::default(),
            late: Tally::default(),
            expired: false,
            canceled: false,
            reverted: false,
            sequence: 0,
        }
    }

    fn seen(amount: u64) -> Fact {
        Fact::Seen { amount: amount.into(), late: false }
    }
    fn confirmed(amount: u64) -> Fact {
        Fact::Confirmed { amount: amount.into(), late: false }
    }
    fn finalized(amount: u64) -> Fact {
        Fact::Finalized { amount: amount.into(), late: false }
    }
    fn reverted(amount: u64, stage: Stage) -> Fact {
        Fact::Reverted { amount: amount.into(), late: false, stage }
    }

    /// The status after the facts, and every event on the way.
    fn story(amount: u64, facts: &[Fact]) -> (Status, Vec<&'static str>, Invoice) {
        let mut told = Vec::new();
        let mut invoice = invoice(amount);
        for fact in facts {
            let (after, events) = invoice.observe(*fact).unwrap();
            told.extend(events.iter().map(|event| event.as_str()));
            invoice = after;
        }
        assert_eq!(invoice.sequence, told.len() as u64);
        (invoice.status(), told, invoice)
    }

    #[test]
    fn is_paid_once_and_settles() {
        let (status, told, invoice) = story(10, &[seen(10), confirmed(10)]);
        assert_eq!((status, told), (Status::Settled, vec!["invoice.detected", "invoice.settled"]));
        assert!(!invoice.is_final());
        let (invoice, events) = invoice.observe(finalized(10)).unwrap();
        assert!(invoice.is_final() && events.is_empty());
    }

    #[test]
    fn partial_payments_add_up() {
        let (status, told, _) = story(10, &[seen(4), confirmed(4), seen(6), confirmed(6)]);
        assert_eq!(status, Status::Settled);
        assert_eq!(told, ["invoice.detected", "invoice.confirmed", "invoice.detected", "invoice.settled"]);
    }

    #[test]
    fn expiry_waits_for_money_that_was_in_time() {
        let (status, told, _) = story(10, &[seen(10), Fact::Expired, confirmed(10)]);
        assert_eq!((status, told), (Status::Settled, vec!["invoice.detected", "invoice.settled"]));
        let (status, told, _) = story(10, &[seen(4), Fact::Expired, confirmed(4)]);
        assert_eq!((status, told), (Status::Underpaid, vec!["invoice.detected", "invoice.underpaid"]));
        let (status, told, _) = story(10, &[seen(4), Fact::Expired, reverted(4, Stage::Detected)]);
        assert_eq!(
            (status, told),
            (Status::Expired, vec!["invoice.detected", "invoice.reverted", "invoice.expired"])
        );
    }

    #[test]
    fn late_money_is_told_and_settles_only_when_accepted() {
        let late = |amount: u64| Fact::Seen { amount: amount.into(), late: true };
        let late_confirmed = Fact::Confirmed { amount: 10.into(), late: true };
        let (status, told, expired) = story(10, &[Fact::Expired, late(10), late_confirmed]);
        assert_eq!((status, told), (Status::Expired, vec!["invoice.expired", "invoice.late_payment"]));
        assert!(expired.is_late());
        let accept = Fact::LateAccepted { amount: 10.into(), stage: Stage::Confirmed };
        let (settled, events) = expired.observe(accept).unwrap();
        assert_eq!((settled.status(), events), (Status::Settled, vec![EventType::InvoiceSettled]));
        assert!(settled.observe(accept).is_err(), "the same money is not accepted twice");
    }

    #[test]
    fn too_much_is_told() {
        let (_, told, invoice) = story(10, &[seen(12), confirmed(12)]);
        assert_eq!(told, ["invoice.detected", "invoice.settled", "invoice.overpaid"]);
        assert!(invoice.is_overpaid());
    }

    #[test]
    fn a_settled_invoice_can_be_reverted_until_it_is_final() {
        let (status, told, invoice) = story(10, &[seen(10), confirmed(10), reverted(10, Stage::Confirmed)]);
        assert_eq!((status, invoice.reverted), (Status::Open, true));
        assert_eq!(told.last(), Some(&"invoice.reverted"));
        let (_, _, last) = story(10, &[seen(10), confirmed(10), finalized(10)]);
        assert_eq!(last.observe(reverted(10, Stage::Final)), Err(Refusal::FinalityContradicted));
    }

    #[test]
    fn cancel_needs_an_invoice_without_money() {
        let (status, told, canceled) = story(10, &[Fact::Canceled]);
        assert_eq!((status, told), (Status::Canceled, vec!["invoice.canceled"]));
        assert!(canceled.would_be_late(Timestamp::EPOCH));
        assert_eq!(canceled.observe(Fact::Canceled), Err(Refusal::Closed(Status::Canceled)));
        let (_, _, paid) = story(10, &[seen(1)]);
        assert_eq!(paid.observe(Fact::Canceled), Err(Refusal::MoneySeen));
    }

    fn any_fact() -> impl Strategy<Value = Fact> {
        let amount = (0u64..30).prop_map(Amount::from);
        let stage = prop_oneof![
            Just(Stage::Detected),
            Just(Stage::Confirmed),
            Just(Stage::Final),
            Just(Stage::Reverted)
        ];
        (amount, any::<bool>(), stage, 0..7).prop_map(|(amount, late, stage, kind)| match kind {
            0 => Fact::Seen { amount, late },
            1 => Fact::Confirmed { amount, late },
            2 => Fact::Finalized { amount, late },
            3 => Fact::Reverted { amount, late, stage },
            4 => Fact::LateAccepted { amount, stage },
            5 => Fact::Expired,
            _ => Fact::Canceled,
        })
    }

    proptest! {
        #[test]
        fn sums_hold_and_final_is_final(facts in proptest::collection::vec(any_fact(), 0..60)) {
            let mut invoice = invoice(10);
            for fact in facts {
                let before = invoice.clone();
                if let Ok((after, _)) = invoice.observe(fact) {
                    invoice = after;
                }
                for tally in [invoice.paid, invoice.late] {
                    prop_assert!(tally.seen >= tally.confirmed && tally.confirmed >= tally.finalized);
                }
                if before.is_final() {
                    prop_assert!(invoice.is_final());
                    prop_assert_eq!(invoice.status(), Status::Settled);
                }
                prop_assert!(invoice.sequence >= before.sequence);
            }
        }

        #[test]
        fn what_is_seen_and_withdrawn_leaves_nothing(amounts in proptest::collection::vec(1u64..1000, 1..20)) {
            let mut invoice = invoice(100);
            for amount in &amounts {
                invoice = invoice.observe(seen(*amount)).unwrap().0;
            }
            for amount in &amounts {
                invoice = invoice.observe(reverted(*amount, Stage::Detected)).unwrap().0;
            }
            prop_assert_eq!(invoice.paid, Tally::default());
            prop_assert_eq!(invoice.status(), Status::Open);
        }
    }
}
