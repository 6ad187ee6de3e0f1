//! What a `Retry-After` header asks for (RFC 9110 §10.2.3), read without trusting it.
//!
//! Guarantees: whatever the header holds, the answer is nothing or a span within the caller's bound; no
//! number is parsed as a float, no date is computed with unchecked arithmetic.
//!
//! Deliberately absent: the wait itself. The wish is weighed by whoever schedules the next attempt.

use std::time::Duration;

use ::http::HeaderMap;
use ::http::header::RETRY_AFTER;
use domain::time::Timestamp;

/// Longer values are not read, in bytes.
const MAX_BYTES: usize = 64;

/// How long the other side asks to be left alone, at most `bound`.
///
/// Whole seconds or an HTTP date in any of its three forms. A date in the past asks for nothing. A value that is
/// neither is ignored, as are several that disagree; a number too large to hold is still a wish, for `bound`.
#[must_use]
pub fn retry_after(headers: &HeaderMap, now: Timestamp, bound: Duration) -> Option<Duration> {
    let mut values = headers.get_all(RETRY_AFTER).iter();
    let first = values.next()?;
    if values.any(|other| other != first) || first.len() > MAX_BYTES {
        return None;
    }
    let text = first.to_str().ok()?.trim_matches([' ', '\t']);
    let wish = seconds(text).or_else(|| until(text, now))?;
    Some(wish.min(bound))
}

fn seconds(text: &str) -> Option<Duration> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)))
}

fn until(text: &str, now: Timestamp) -> Option<Duration> {
    let at = httpdate::parse_http_date(text).ok()?;
    let since_epoch = at.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(Timestamp::from_seconds(since_epoch.as_secs()).since(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::HeaderValue;
    use proptest::prelude::*;

    const BOUND: Duration = Duration::from_secs(3600);

    /// 2026-01-31T12:00:00Z.
    fn now() -> Timestamp {
        Timestamp::from_seconds(1_769_860_800)
    }

    fn asked(values: &[&[u8]]) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(RETRY_AFTER, HeaderValue::from_bytes(value).unwrap());
        }
        retry_after(&headers, now(), BOUND)
    }

    #[test]
    fn hostile_values_ask_for_nothing() {
        let long = vec![b'1'; 50 * 1024];
        let hostile: [&[u8]; 20] = [
            b"",
            b" ",
            b"-1",
            b"+1",
            b"1.5",
            b"1e3",
            b"1e400",
            b"NaN",
            b"inf",
            b"0x10",
            b"1 2",
            b"1,2",
            b"soon",
            b"\xff\xfe",
            b"Sat, 31 Jan 2026 12:00:00 +0900",
            b"Sat, 31 Jan 2026 12:00:00",
            b"2026-01-31T13:00:00Z",
            b"Sat, 99 Jan 2026 12:00:00 GMT",
            b"Thu, 01 Jan 10000 00:00:00 GMT",
            &long,
        ];
        for value in hostile {
            assert_eq!(asked(&[value]), None, "{:?}", String::from_utf8_lossy(value));
        }
        assert_eq!(asked(&[]), None);
    }

    #[test]
    fn seconds_and_dates_are_held_to_the_bound() {
        let seconds = |wish: u64| Some(Duration::from_secs(wish));
        assert_eq!(asked(&[b"0"]), seconds(0));
        assert_eq!(asked(&[b"120"]), seconds(120));
        assert_eq!(asked(&[b"\t007 "]), seconds(7));
        assert_eq!(asked(&[b"3601"]), Some(BOUND));
        assert_eq!(asked(&[b"99999999999999999999999999999999"]), Some(BOUND));
        assert_eq!(asked(&[b"Sat, 31 Jan 2026 12:01:00 GMT"]), seconds(60));
        assert_eq!(asked(&[b"Saturday, 31-Jan-26 12:01:00 GMT"]), seconds(60));
        assert_eq!(asked(&[b"Sat Jan 31 12:01:00 2026"]), seconds(60));
        assert_eq!(asked(&[b"Thu, 01 Jan 1970 00:00:00 GMT"]), seconds(0));
        assert_eq!(asked(&[b"Fri, 31 Dec 9999 23:59:59 GMT"]), Some(BOUND));
    }

    #[test]
    fn two_headers_must_agree() {
        assert_eq!(asked(&[b"5", b"5"]), Some(Duration::from_secs(5)));
        assert_eq!(asked(&[b"5", b"500"]), None);
    }

    proptest! {
        #[test]
        fn never_panics_and_never_passes_the_bound(value in proptest::collection::vec(any::<u8>(), 0..80), at: i64) {
            let mut headers = HeaderMap::new();
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.insert(RETRY_AFTER, value);
            }
            let wish = retry_after(&headers, Timestamp::from_millis(at), BOUND);
            prop_assert!(wish.is_none_or(|wish| wish <= BOUND));
        }

        #[test]
        fn reads_every_whole_number(seconds: u128) {
            prop_assert_eq!(
                asked(&[seconds.to_string().as_bytes()]),
                Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX)).min(BOUND))
            );
        }
    }
}
