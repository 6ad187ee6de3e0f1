//! Time as a value, and the port through which it enters.
//!
//! A [`Timestamp`] is a wall-clock instant that can be stored and compared across restarts. A span
//! inside one process is measured with [`Clock::monotonic`], which never steps back. Domain
//! functions never hold a clock: they take `now`.

use std::fmt;
use std::future::Future;
use std::ops::{Add, Sub};
use std::pin::Pin;
use std::str::FromStr;
use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::wire::serde_as_text;

/// Milliseconds since the Unix epoch, UTC. Spelt as RFC 3339 outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

/// A text that is not an RFC 3339 time in the years 1970 to 9999.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an RFC 3339 time such as 2026-01-31T12:00:00Z")]
pub struct InvalidTimestamp;

impl Timestamp {
    /// The Unix epoch.
    pub const EPOCH: Self = Self(0);
    /// 9999-12-31T23:59:59Z, the last second RFC 3339 can spell.
    pub const MAX: Self = Self(253_402_300_799_000);

    /// From milliseconds since the epoch, held within `EPOCH..=MAX`.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        if millis < 0 {
            Self::EPOCH
        } else if millis > Self::MAX.0 {
            Self::MAX
        } else {
            Self(millis)
        }
    }

    /// From whole seconds since the epoch (block headers count in these), held within range.
    #[must_use]
    pub fn from_seconds(seconds: u64) -> Self {
        i64::try_from(seconds).map_or(Self::MAX, |seconds| Self::from_millis(seconds.saturating_mul(1000)))
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Whole seconds since the epoch.
    #[must_use]
    pub const fn as_seconds(self) -> i64 {
        self.0 / 1000
    }

    /// The time that passed since `earlier`; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    /// Saturates at [`Timestamp::MAX`].
    fn add(self, span: Duration) -> Self {
        Self::from_millis(self.0.saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;
    /// Saturates at [`Timestamp::EPOCH`].
    fn sub(self, span: Duration) -> Self {
        Self::from_millis(self.0.saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC, with as many digits of a second as there are. Times are spelt in every event, so this is
    /// arithmetic and no formatting machine.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, millis) = (self.0.div_euclid(DAY_MILLIS), self.0.rem_euclid(DAY_MILLIS));
        let (year, month, day) = civil(days);
        let (seconds, fraction) = (millis / 1000, millis % 1000);
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let parts =
            [(0, 4, year), (5, 2, month), (8, 2, day), (11, 2, hour), (14, 2, minute), (17, 2, second)];
        for (from, digits, number) in parts.into_iter().chain([(20, 3, fraction)]) {
            put_digits(&mut text[from..from + digits], number);
        }
        // No fraction, or one without zeros at its end.
        let length = match fraction {
            0 => 19,
            tenths if tenths % 100 == 0 => 21,
            hundredths if hundredths % 10 == 0 => 22,
            _ => 23,
        };
        text[length] = b'Z';
        f.write_str(std::str::from_utf8(&text[..=length]).map_err(|_| fmt::Error)?)
    }
}

/// Writes the last digits of a number.
fn put_digits(place: &mut [u8], mut number: i64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
    }
}

const DAY_MILLIS: i64 = 86_400_000;

/// Year, month and day of a count of days since 1970-01-01 in the Gregorian calendar: in years that begin in March the leap
/// day is the last, so that the months before it follow one line (153 days in every five).
const fn civil(days: i64) -> (i64, i64, i64) {
    // Days since 0000-03-01, in eras of 400 years (146,097 days).
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;
    fn from_str(text: &str) -> Result<Self, InvalidTimestamp> {
        let instant = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| InvalidTimestamp)?;
        let millis =
            i64::try_from(instant.unix_timestamp_nanos() / 1_000_000).map_err(|_| InvalidTimestamp)?;
        if (0..=Self::MAX.0).contains(&millis) { Ok(Self(millis)) } else { Err(InvalidTimestamp) }
    }
}

serde_as_text!(Timestamp);

/// A future that ends when its instant has come.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where time comes from. The process has one real clock; simulation has a second, which it moves.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock. May step in either direction when the machine's clock is set.
    fn now(&self) -> Timestamp;
    /// Time since an arbitrary instant of this process; never steps back. For measuring spans.
    fn monotonic(&self) -> Duration;
    /// Ends after `span` has passed on the monotonic clock.
    fn sleep(&self, span: Duration) -> Sleep;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spells_and_parses_rfc_3339() {
        let at = Timestamp::from_millis(1_767_225_600_123);
        assert_eq!(at.to_string(), "2026-01-01T00:00:00.123Z");
        assert_eq!("2026-01-01T02:00:00.123+02:00".parse(), Ok(at));
        for bad in ["", "2026-01-01", "1969-12-31T23:59:59Z", "2026-13-01T00:00:00Z", "now"] {
            assert_eq!(bad.parse::<Timestamp>(), Err(InvalidTimestamp), "{bad}");
        }
    }

    #[test]
    fn is_spelt_as_the_calendar_has_it() {
        let spelt_by_the_library = |at: Timestamp| {
            let nanos = i128::from(at.as_millis()) * 1_000_000;
            OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap().format(&Rfc3339).unwrap()
        };
        let days = Timestamp::MAX.as_millis() / DAY_MILLIS;
        for (day, odd) in (0..=days).step_by(7).zip((0_i64..).step_by(86_399_917)) {
            let at = Timestamp::from_millis(day * DAY_MILLIS + odd % DAY_MILLIS);
            assert_eq!(at.to_string(), spelt_by_the_library(at));
        }
        for millis in [0, 1, 10, 100, 120, 999, 1_000, 59_999, 86_399_999] {
            let at = Timestamp::from_millis(951_782_400_000 + millis);
            assert_eq!(at.to_string(), spelt_by_the_library(at));
        }
        assert_eq!(Timestamp::MAX.to_string(), "9999-12-31T23:59:59Z");
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Timestamp::MAX + Duration::MAX, Timestamp::MAX);
        assert_eq!(Timestamp::EPOCH - Duration::MAX, Timestamp::EPOCH);
        assert_eq!(Timestamp::EPOCH.since(Timestamp::MAX), Duration::ZERO);
        assert_eq!(Timestamp::from_seconds(u64::MAX), Timestamp::MAX);
    }
}
