//! Every kind of id, one line each. An id is a `UUIDv7` (RFC 9562 §5.7) with a prefix that says what
//! it names, so that an id pasted in the wrong place is refused instead of not found.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::chance::Chance;
use crate::time::Timestamp;
use crate::wire::serde_as_text;

/// A text that is not an id of the kind that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an id of this kind: expected `{prefix}_` and a UUID")]
pub struct InvalidId {
    prefix: &'static str,
}

fn mint(now: Timestamp, chance: &Chance) -> Uuid {
    let millis = u64::try_from(now.as_millis()).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(millis, &chance.bytes()).into_uuid()
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// The prefix of this kind's spelling, without the underscore.
            pub const PREFIX: &'static str = $prefix;

            /// A new id: sorts by `now`, unique by chance.
            #[must_use]
            pub fn mint(now: Timestamp, chance: &Chance) -> Self {
                Self(mint(now, chance))
            }

            /// The 16 bytes, as stored.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// From the 16 stored bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// From stored bytes of unchecked length.
            ///
            /// # Errors
            /// When there are not 16 of them.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, InvalidId> {
                Uuid::from_slice(bytes).map(Self).map_err(|_| InvalidId { prefix: $prefix })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "_{}"), self.0.simple())
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let invalid = InvalidId { prefix: $prefix };
                let digits = text.strip_prefix(concat!($prefix, "_")).ok_or(invalid.clone())?;
                Uuid::try_parse(digits).map(Self).map_err(|_| invalid)
            }
        }

        serde_as_text!($name);
    )+};
}

ids! {
    /// What someone should pay.
    InvoiceId = "inv";
    /// Money seen on chain that concerns us.
    PaymentId = "pay";
    /// Something that happened, as told to others.
    EventId = "evt";
    /// Where a merchant wants to be told.
    EndpointId = "whe";
    /// One event on its way to one endpoint.
    DeliveryId = "dlv";
    /// A stored request to do work.
    JobId = "job";
    /// An API key (not its secret).
    KeyId = "key";
    /// One run of the process, from start to end.
    Incarnation = "run";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses_other_kinds() {
        let chance = Chance::from_seed(1);
        let id = InvoiceId::mint(Timestamp::from_millis(5), &chance);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.to_string().parse::<EventId>().is_err());
        assert!("inv_".parse::<InvoiceId>().is_err());
        assert_ne!(id, InvoiceId::mint(Timestamp::from_millis(5), &chance));
        assert!(id < InvoiceId::mint(Timestamp::from_millis(6), &chance));
    }
}
