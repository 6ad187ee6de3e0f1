//! A payment: a transfer that concerns us, and the invoice it belongs to, if that can be said.
//!
//! Matching must not be stealable: no customer may take another's money, by accident or by design.
//! So a match needs something that only one invoice has: a recipient of its own, a named payer, or an amount that no
//! other open invoice of that recipient asks for. When more than one reading is left, the payment is *ambiguous* and
//! waits for a person. It is never a guess.

use std::fmt;
use std::str::FromStr;

use crate::chain::{Address, InvalidWord, Transfer};
use crate::id::InvoiceId;
use crate::money::Amount;
use crate::time::Timestamp;
use crate::wire::serde_as_text;

/// How far a payment has come on its chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Its block is no longer part of the chain. It may come back in another block.
    Reverted,
    /// In a proven block.
    Detected,
    /// Confirmed by the invoice's rule.
    Confirmed,
    /// In a finalized block.
    Final,
}

impl Stage {
    /// The spelling outside.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reverted => "reverted",
            Self::Detected => "detected",
            Self::Confirmed => "confirmed",
            Self::Final => "final",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Stage {
    type Err = InvalidWord;
    fn from_str(text: &str) -> Result<Self, InvalidWord> {
        [Self::Reverted, Self::Detected, Self::Confirmed, Self::Final]
            .into_iter()
            .find(|stage| stage.as_str() == text)
            .ok_or(InvalidWord)
    }
}

serde_as_text!(Stage);

/// What matching needs to know of an invoice on the transfer's chain, asset and recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The invoice.
    pub id: InvoiceId,
    /// Its whole amount.
    pub amount: Amount,
    /// What is still to be seen of it.
    pub remaining: Amount,
    /// The payer it names.
    pub payer: Option<Address>,
    /// When it was made.
    pub created_at: Timestamp,
    /// The chain's height when it was made; none while that is not known.
    pub created_block: Option<u64>,
}

/// The invoices a transfer could belong to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Candidates {
    /// The only invoice, open or closed, that ever had this recipient on this chain, when it asks for this asset.
    pub sole: Option<Candidate>,
    /// Active invoices that name the transfer's payer.
    pub named: Vec<Candidate>,
    /// Active invoices that name no payer and still miss exactly the transfer's amount.
    pub exact: Vec<Candidate>,
    /// Closed invoices that name no payer and asked for exactly the transfer's amount, for which it could be late or
    /// second money. They get none of it by themselves, but they make a match with another ambiguous.
    pub closed: Vec<Candidate>,
}

/// Why a payment belongs to no invoice yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unmatched {
    /// No open invoice of this recipient and asset asks for this.
    NoInvoice,
    /// The recipient belongs to an invoice that names another payer.
    OtherPayer,
    /// The invoice's sum with it would exceed 2^256 − 1: no real money, but no reason to stop either.
    TooLarge,
}

impl Unmatched {
    /// The spelling outside.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoInvoice => "no_invoice",
            Self::OtherPayer => "other_payer",
            Self::TooLarge => "too_large",
        }
    }
}

/// To which invoice a transfer belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// This one.
    Invoice(InvoiceId),
    /// One of these; a person has to say which.
    Ambiguous(Vec<InvoiceId>),
    /// None.
    Unmatched(Unmatched),
}

impl Candidate {
    /// Whether a transfer to a recipient of the invoice's own is for it. Money that came before the invoice may be
    /// anything, if the recipient is also somebody's wallet: it has to come from the named payer, or be the exact amount.
    fn judge(&self, transfer: &Transfer) -> Match {
        match self.payer {
            Some(payer) if payer != transfer.payer => Match::Unmatched(Unmatched::OtherPayer),
            None if self.is_younger_than(transfer) && transfer.amount != self.amount => {
                Match::Unmatched(Unmatched::NoInvoice)
            }
            _ => Match::Invoice(self.id),
        }
    }

    /// Whether the invoice may have been made after the transfer was.
    fn is_younger_than(&self, transfer: &Transfer) -> bool {
        self.created_block.is_none_or(|height| transfer.block.number <= height)
    }
}

impl Candidates {
    /// Decides to which invoice `transfer` belongs.
    #[must_use]
    pub fn decide(&self, transfer: &Transfer) -> Match {
        if let Some(sole) = self.sole {
            return sole.judge(transfer);
        }
        let named = self.named_choice(transfer.amount);
        let exact = self.exact.iter().filter(|fit| !fit.is_younger_than(transfer)).map(|fit| fit.id);
        let mut choices: Vec<InvoiceId> = named.into_iter().chain(exact).collect();
        if !choices.is_empty() {
            choices.extend(self.closed.iter().map(|fit| fit.id));
        }
        match (choices.pop(), choices.is_empty()) {
            (None, _) => Match::Unmatched(Unmatched::NoInvoice),
            (Some(only), true) => Match::Invoice(only),
            (Some(last), false) => {
                choices.push(last);
                Match::Ambiguous(choices)
            }
        }
    }

    /// Among invoices that name this payer no one else can lose: what fits exactly first, then the
    /// oldest.
    fn named_choice(&self, amount: Amount) -> Option<InvoiceId> {
        let oldest = |fits: &dyn Fn(&Candidate) -> bool| {
            self.named.iter().filter(|c| fits(c)).min_by_key(|c| (c.created_at, c.id)).map(|c| c.id)
        };
        oldest(&|candidate| candidate.remaining == amount).or_else(|| oldest(&|_| true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{Asset, B256, BlockRef, ChainId, TransferKey};

    const PAYER: Address = Address::repeat_byte(0xaa);
    const OTHER: Address = Address::repeat_byte(0xbb);

    fn transfer(amount: u64) -> Transfer {
        Transfer {
            key: TransferKey { chain: ChainId::eip155(1), tx: B256::ZERO, ordinal: 0 },
            block: BlockRef { number: 1, hash: B256::ZERO },
            time: Timestamp::EPOCH,
            tx_index: 0,
            log_index: Some(0),
            asset: Asset::Native,
            payer: PAYER,
            recipient: Address::repeat_byte(1),
            amount: amount.into(),
        }
    }

    fn candidate(number: u8, amount: u64, payer: Option<Address>) -> Candidate {
        Candidate {
            id: InvoiceId::from_bytes([number; 16]),
            amount: amount.into(),
            remaining: amount.into(),
            payer,
            created_at: Timestamp::from_seconds(number.into()),
            created_block: Some(0),
        }
    }

    fn invoice(number: u8) -> Match {
        Match::Invoice(InvoiceId::from_bytes([number; 16]))
    }

    #[test]
    fn a_recipient_of_its_own_takes_any_amount() {
        let candidates = Candidates { sole: Some(candidate(1, 100, None)), ..Candidates::default() };
        assert_eq!(candidates.decide(&transfer(7)), invoice(1));
        assert_eq!(candidates.decide(&transfer(700)), invoice(1));
    }

    #[test]
    fn earlier_money_has_to_be_the_exact_amount() {
        let sole = Candidate { created_block: Some(1), ..candidate(1, 100, None) };
        let candidates = Candidates { sole: Some(sole), ..Candidates::default() };
        assert_eq!(candidates.decide(&transfer(100)), invoice(1));
        assert_eq!(candidates.decide(&transfer(99)), Match::Unmatched(Unmatched::NoInvoice));
    }

    #[test]
    fn a_named_payer_is_a_condition() {
        let sole = |payer| Candidates { sole: Some(candidate(1, 100, Some(payer))), ..Candidates::default() };
        assert_eq!(sole(OTHER).decide(&transfer(100)), Match::Unmatched(Unmatched::OtherPayer));
        assert_eq!(sole(PAYER).decide(&transfer(100)), invoice(1));
    }

    #[test]
    fn a_shared_recipient_needs_the_exact_amount() {
        let candidates = Candidates { exact: vec![candidate(1, 100, None)], ..Candidates::default() };
        assert_eq!(candidates.decide(&transfer(100)), invoice(1));
        assert_eq!(Candidates::default().decide(&transfer(99)), Match::Unmatched(Unmatched::NoInvoice));
    }

    #[test]
    fn of_one_payer_the_exact_then_the_oldest() {
        let named = vec![
            candidate(2, 50, Some(PAYER)),
            candidate(1, 100, Some(PAYER)),
            candidate(3, 50, Some(PAYER)),
        ];
        let candidates = Candidates { named, ..Candidates::default() };
        assert_eq!(candidates.decide(&transfer(50)), invoice(2));
        assert_eq!(candidates.decide(&transfer(30)), invoice(1));
    }

    #[test]
    fn several_readings_are_ambiguous() {
        let ids = |m| match m {
            Match::Ambiguous(ids) => ids.len(),
            _ => 0,
        };
        let named_and_open = Candidates {
            named: vec![candidate(1, 100, Some(PAYER))],
            exact: vec![candidate(2, 100, None)],
            ..Candidates::default()
        };
        assert_eq!(ids(named_and_open.decide(&transfer(100))), 2);
        let late_for_another = Candidates {
            exact: vec![candidate(2, 5, None)],
            closed: vec![candidate(1, 5, None)],
            ..Candidates::default()
        };
        assert_eq!(ids(late_for_another.decide(&transfer(5))), 2);
        let only_closed = Candidates { closed: vec![candidate(1, 5, None)], ..Candidates::default() };
        assert_eq!(only_closed.decide(&transfer(5)), Match::Unmatched(Unmatched::NoInvoice));
        let equal =
            Candidates { exact: vec![candidate(1, 5, None), candidate(2, 5, None)], ..Candidates::default() };
        assert_eq!(ids(equal.decide(&transfer(5))), 2);
    }
}
