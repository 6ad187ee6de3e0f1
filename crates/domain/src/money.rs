//! Amounts of an asset, in its base units.
//!
//! An [`Amount`] is an integer of at most 256 bits that is spelt in decimal everywhere outside: a
//! JSON number would lose digits above 2^53. There is no floating point and no unchecked operator;
//! what would overflow is an error the caller has to answer.

use std::fmt;
use std::str::FromStr;

use alloy_primitives::U256;

use crate::wire::serde_as_text;

/// A quantity of an asset in base units (wei, micro-USDC), 0 to 2^256 − 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Amount(U256);

/// Why a text is no amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAmount {
    /// Something other than the digits 0–9: a sign, a point, an exponent, hex, white space.
    #[error("must be a decimal integer string of base units: digits only, no sign, point, exponent or 0x")]
    NotDigits,
    /// More than 256 bits.
    #[error("is larger than 2^256 - 1")]
    TooLarge,
}

/// A sum or difference left the range of an amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("amount arithmetic left the range 0 to 2^256 - 1")]
pub struct OutOfRange;

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(U256::ZERO);
    /// 2^256 − 1.
    pub const MAX: Self = Self(U256::MAX);

    /// From the integer.
    #[must_use]
    pub const fn new(units: U256) -> Self {
        Self(units)
    }

    /// The integer.
    #[must_use]
    pub const fn units(self) -> U256 {
        self.0
    }

    /// Whether this is nothing.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0.is_zero()
    }

    /// The sum.
    ///
    /// # Errors
    /// Above 2^256 − 1.
    pub fn plus(self, other: Self) -> Result<Self, OutOfRange> {
        self.0.checked_add(other.0).map(Self).ok_or(OutOfRange)
    }

    /// The difference.
    ///
    /// # Errors
    /// Below zero.
    pub fn minus(self, other: Self) -> Result<Self, OutOfRange> {
        self.0.checked_sub(other.0).map(Self).ok_or(OutOfRange)
    }

    /// What is left of `self` after `other`, or nothing.
    #[must_use]
    pub fn remaining_after(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl From<u64> for Amount {
    fn from(units: u64) -> Self {
        Self(U256::from(units))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Most amounts are small, and small integers are spelt several times as fast.
        match u64::try_from(self.0) {
            Ok(small) => fmt::Display::fmt(&small, f),
            Err(_) => fmt::Display::fmt(&self.0, f),
        }
    }
}

impl fmt::Debug for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for Amount {
    type Err = InvalidAmount;
    fn from_str(text: &str) -> Result<Self, InvalidAmount> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidAmount::NotDigits);
        }
        // Nineteen digits fit 64 bits, and most amounts are no longer.
        if let (1..=19, Ok(small)) = (text.len(), text.parse::<u64>()) {
            return Ok(Self::from(small));
        }
        // 2^256 has 78 digits; a longer text without leading zeros cannot fit.
        if text.trim_start_matches('0').len() > 78 {
            return Err(InvalidAmount::TooLarge);
        }
        U256::from_str_radix(text, 10).map(Self).map_err(|_| InvalidAmount::TooLarge)
    }
}

serde_as_text!(Amount);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_is_no_decimal_integer() {
        for bad in ["", "-1", "+1", "1.0", "1e3", "0x10", " 1", "1 ", "1_000", "١"] {
            assert_eq!(bad.parse::<Amount>(), Err(InvalidAmount::NotDigits), "{bad}");
        }
        let above = "115792089237316195423570985008687907853269984665640564039457584007913129639936";
        assert_eq!(above.parse::<Amount>(), Err(InvalidAmount::TooLarge));
        assert_eq!("9".repeat(10_000).parse::<Amount>(), Err(InvalidAmount::TooLarge));
        assert_eq!(Amount::MAX.to_string().parse(), Ok(Amount::MAX));
    }

    proptest! {
        #[test]
        fn text_is_exact(limbs: [u64; 4]) {
            let amount = Amount::new(U256::from_limbs(limbs));
            prop_assert_eq!(amount.to_string().parse(), Ok(amount));
        }

        #[test]
        fn sum_and_difference_undo_each_other_or_refuse(a: [u64; 4], b: [u64; 4]) {
            let (a, b) = (Amount::new(U256::from_limbs(a)), Amount::new(U256::from_limbs(b)));
            match a.plus(b) {
                Ok(sum) => prop_assert_eq!(sum.minus(b), Ok(a)),
                Err(OutOfRange) => prop_assert!(a.units() > U256::MAX - b.units()),
            }
            prop_assert_eq!(a.minus(b).is_ok(), a >= b);
        }
    }
}
