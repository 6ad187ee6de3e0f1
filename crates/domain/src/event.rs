//! The closed list of things that happen, as merchants and operators are told of them.
//!
//! An event's body is made once, when it happens, and its bytes never change: what is signed, replayed and
//! compared later is what was committed with the cause.

use std::fmt;
use std::str::FromStr;

use crate::chain::InvalidWord;
use crate::wire::serde_as_text;

macro_rules! event_types {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        /// What happened. The spelling is part of the outer contract.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum EventType {
            $($(#[$doc])* $name,)+
        }

        impl EventType {
            /// Every type, in the order of the contract.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The spelling outside.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

event_types! {
    /// A payment of the invoice is in a proven block.
    InvoiceDetected = "invoice.detected",
    /// A part of the amount is confirmed, and more is missing.
    InvoiceConfirmed = "invoice.confirmed",
    /// Confirmed payments cover the amount.
    InvoiceSettled = "invoice.settled",
    /// The invoice expired with a part of its amount confirmed.
    InvoiceUnderpaid = "invoice.underpaid",
    /// More than the amount is confirmed.
    InvoiceOverpaid = "invoice.overpaid",
    /// The invoice expired with nothing paid in time.
    InvoiceExpired = "invoice.expired",
    /// The merchant withdrew the invoice.
    InvoiceCanceled = "invoice.canceled",
    /// A payment made after expiry or cancellation is confirmed.
    InvoiceLatePayment = "invoice.late_payment",
    /// A payment that had been told of is no longer in the chain.
    InvoiceReverted = "invoice.reverted",
    /// A payment fits several invoices; a person has to say which.
    PaymentAmbiguous = "payment.ambiguous",
    /// A delivery was given up and kept as a dead letter.
    DeliveryDeadLettered = "delivery.dead_lettered",
    /// Settling stopped on a chain; observing goes on.
    SettlementFrozen = "settlement.frozen",
    /// Settling goes on again.
    SettlementThawed = "settlement.thawed",
    /// A provider said something that is proven false.
    ProviderFaulty = "provider.faulty",
    /// Fewer groups answer than must agree: nothing settles.
    QuorumLost = "quorum.lost",
    /// Enough groups answer again.
    QuorumRestored = "quorum.restored",
    /// An endpoint is no longer delivered to.
    EndpointDisabled = "endpoint.disabled",
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for EventType {
    type Err = InvalidWord;
    fn from_str(text: &str) -> Result<Self, InvalidWord> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == text).ok_or(InvalidWord)
    }
}

/// Which events an endpoint wants: all (`*`), a family (`invoice.*`) or one type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subscription {
    /// Everything.
    All,
    /// Every type that begins with this word and a point.
    Family(&'static str),
    /// One type.
    One(EventType),
}

impl Subscription {
    /// Whether an event of this type is wanted.
    #[must_use]
    pub fn wants(&self, kind: EventType) -> bool {
        match self {
            Self::All => true,
            Self::Family(family) => family_of(kind) == *family,
            Self::One(one) => *one == kind,
        }
    }
}

fn family_of(kind: EventType) -> &'static str {
    kind.as_str().split_once('.').map_or("", |(family, _)| family)
}

impl fmt::Display for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Family(family) => write!(f, "{family}.*"),
            Self::One(kind) => kind.fmt(f),
        }
    }
}

impl FromStr for Subscription {
    type Err = InvalidWord;
    fn from_str(text: &str) -> Result<Self, InvalidWord> {
        if text == "*" {
            return Ok(Self::All);
        }
        match text.strip_suffix(".*") {
            Some(word) => EventType::ALL
                .iter()
                .map(|kind| family_of(*kind))
                .find(|family| *family == word)
                .map(Self::Family)
                .ok_or(InvalidWord),
            None => text.parse().map(Self::One),
        }
    }
}

serde_as_text!(EventType, Subscription);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_parses_as_it_is_spelt() {
        for kind in EventType::ALL {
            assert_eq!(kind.as_str().parse(), Ok(*kind));
        }
        assert!("invoice.paid".parse::<EventType>().is_err());
    }

    #[test]
    fn subscriptions_select() {
        let wants = |text: &str, kind| text.parse::<Subscription>().unwrap().wants(kind);
        assert!(wants("*", EventType::QuorumLost));
        assert!(wants("invoice.*", EventType::InvoiceSettled));
        assert!(!wants("invoice.*", EventType::PaymentAmbiguous));
        assert!(wants("quorum.lost", EventType::QuorumLost));
        assert!("nothing.*".parse::<Subscription>().is_err());
        assert!("".parse::<Subscription>().is_err());
    }
}
