//! Why an endpoint gave no answer, classified once, where the bytes arrive.
//!
//! Guarantees: the text of an error is read here and nowhere else, and is dropped; what remains is a
//! class that code can match on, so an error can never be taken for an answer and no key that an
//! endpoint echoes can reach a log.
//!
//! Deliberately absent: what to do about it. That is the provider's and the quorum's business.

use std::time::Duration;

/// The outcome of one call to one endpoint, when it is not an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RpcError {
    /// No connection, or it broke.
    #[error("connection failed")]
    Transport {
        /// Whether the request may have reached the endpoint.
        maybe_delivered: bool,
    },
    /// No answer before the deadline.
    #[error("timed out")]
    Timeout,
    /// An HTTP status that is not success, other than 429.
    #[error("answered HTTP {0}")]
    Http(u16),
    /// HTTP 429, or a JSON-RPC error that says so, or our own budget for this endpoint is spent.
    #[error("rate limited")]
    RateLimited {
        /// What the endpoint asked for, if it did.
        retry_after: Option<Duration>,
    },
    /// The endpoint does not offer the method.
    #[error("method not supported")]
    Unsupported,
    /// The endpoint does not take these parameters.
    #[error("parameters not accepted")]
    InvalidParams,
    /// The endpoint says, or shows by `null`, that it does not have the block or transaction.
    #[error("does not have it (yet)")]
    NotFound,
    /// The range or the result is larger than the endpoint serves.
    #[error("range too large")]
    RangeTooLarge {
        /// The largest span of blocks it named, if it named one.
        suggested: Option<u64>,
    },
    /// The call was executed and reverted.
    #[error("execution reverted")]
    Reverted,
    /// Any other JSON-RPC error object.
    #[error("answered JSON-RPC error {0}")]
    JsonRpc(i64),
    /// The answer is not what the protocol allows.
    #[error("malformed answer: {0}")]
    Malformed(&'static str),
    /// The answer is larger than we read.
    #[error("answer too large")]
    TooLarge,
    /// The endpoint serves another chain.
    #[error("serves chain {found}, not {expected}")]
    WrongChain {
        /// EIP-155 number we were told.
        expected: u64,
        /// EIP-155 number it answered.
        found: u64,
    },
    /// Not asked: its breaker is open.
    #[error("breaker is open")]
    BreakerOpen,
    /// Not asked: too many calls to it are under way.
    #[error("too many calls under way")]
    Busy,
    /// Not asked: it serves another chain.
    #[error("excluded for serving another chain")]
    Excluded,
}

impl RpcError {
    /// A short, stable word for metrics and for the API.
    #[must_use]
    pub const fn class(self) -> &'static str {
        match self {
            Self::Transport { .. } => "transport",
            Self::Timeout => "timeout",
            Self::Http(_) => "http",
            Self::RateLimited { .. } => "rate_limited",
            Self::Unsupported => "unsupported",
            Self::InvalidParams => "invalid_params",
            Self::NotFound => "not_found",
            Self::RangeTooLarge { .. } => "range_too_large",
            Self::Reverted => "reverted",
            Self::JsonRpc(_) => "jsonrpc",
            Self::Malformed(_) => "malformed",
            Self::TooLarge => "too_large",
            Self::WrongChain { .. } => "wrong_chain",
            Self::BreakerOpen => "breaker_open",
            Self::Busy => "busy",
            Self::Excluded => "excluded",
        }
    }

    /// Whether the same read may be tried again at once with hope.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Transport { .. } | Self::Http(500..=599) | Self::JsonRpc(_))
    }

    /// Whether it says something about the endpoint's health, as opposed to about the question.
    #[must_use]
    pub const fn counts_against_endpoint(self) -> bool {
        matches!(
            self,
            Self::Transport { .. }
                | Self::Timeout
                | Self::Http(_)
                | Self::RateLimited { .. }
                | Self::JsonRpc(_)
                | Self::Malformed(_)
                | Self::TooLarge
        )
    }

    /// Classifies a JSON-RPC error object by code, and by text where the codes are not used alike.
    ///
    /// Codes: JSON-RPC 2.0 §5.1, EIP-1474. The phrases are those of geth, erigon, nethermind, besu,
    /// reth, anvil and of hosted endpoints.
    #[must_use]
    pub fn from_object(code: i64, message: &str) -> Self {
        let text = message.to_ascii_lowercase();
        let says = |phrases: &[&str]| phrases.iter().any(|phrase| text.contains(phrase));
        if says(RATE_PHRASES) || code == 429 || code == -32_029 {
            return Self::RateLimited { retry_after: None };
        }
        // geth's words for a range that begins above its head, not for one that is too long.
        if says(&["invalid block range"]) {
            return Self::NotFound;
        }
        if says(RANGE_PHRASES) {
            return Self::RangeTooLarge { suggested: suggested_range(&text) };
        }
        if says(MISSING_PHRASES) || code == -32_001 {
            return Self::NotFound;
        }
        if code == -32_601
            || says(&[
                "method not found",
                "does not exist/is not available",
                "not supported",
                "unsupported method",
            ])
        {
            return Self::Unsupported;
        }
        if code == 3 || says(&["execution reverted"]) {
            return Self::Reverted;
        }
        if code == -32_602 {
            return Self::InvalidParams;
        }
        // EIP-1474 "limit exceeded": hosted endpoints use it for rates as well as for ranges.
        if code == -32_005 {
            return Self::RateLimited { retry_after: None };
        }
        Self::JsonRpc(code)
    }
}

const RATE_PHRASES: &[&str] = &[
    "rate limit",
    "too many requests",
    "request limit",
    "capacity exceeded",
    "throughput",
    "compute units per second",
    "daily request count",
    "exceeded its requests",
];
const RANGE_PHRASES: &[&str] = &[
    "block range",
    "range is too large",
    "range too large",
    "blocks range",
    "range limit",
    "more than 10000 results",
    "query returned more than",
    "too many results",
    "too many blocks",
    "response size",
    "log response size exceeded",
    "limited to a",
    "max results",
    "exceeds the range",
    "eth_getlogs is limited",
];
const MISSING_PHRASES: &[&str] = &[
    "unknown block",
    "header not found",
    "block not found",
    "block does not exist",
    "could not find block",
    "missing trie node",
    "requested data is not available",
    "state not available",
    "pruned",
    "one of the blocks specified in filter",
    "after last accepted block",
    "cannot be found",
    "finalized block not found",
    "safe block not found",
    "transaction not found",
    "beyond current head",
    "greater than the head",
    "not yet available",
];

/// The span of blocks an error text names: `0x…, 0x…` as a range, or the number before `block`.
fn suggested_range(text: &str) -> Option<u64> {
    if let Some(inside) = text.split('[').nth(1).and_then(|rest| rest.split(']').next()) {
        let mut bounds = inside.split(',').map(|bound| {
            let digits = bound.trim().strip_prefix("0x")?;
            u64::from_str_radix(digits, 16).ok()
        });
        if let (Some(Some(low)), Some(Some(high))) = (bounds.next(), bounds.next()) {
            return high.checked_sub(low)?.checked_add(1);
        }
    }
    let words: Vec<&str> =
        text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    words.windows(2).find_map(|pair| match pair {
        [number, unit] if unit.starts_with("block") => {
            let (digits, thousands) = number.strip_suffix('k').map_or((*number, 1), |digits| (digits, 1000));
            digits.parse::<u64>().ok()?.checked_mul(thousands).filter(|span| *span > 0)
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_objects_fall_into_one_class() {
        let cases = [
            (-32_000, "header not found", RpcError::NotFound),
            (-32_000, "unknown block", RpcError::NotFound),
            (-32_602, "invalid params", RpcError::InvalidParams),
            (
                -32_601,
                "the method eth_getBlockReceipts does not exist/is not available",
                RpcError::Unsupported,
            ),
            (
                -32_005,
                "daily request count exceeded, request rate limited",
                RpcError::RateLimited { retry_after: None },
            ),
            (
                -32_005,
                "query returned more than 10000 results. Try with this block range [0x10, 0x1f].",
                RpcError::RangeTooLarge { suggested: Some(16) },
            ),
            (
                -32_600,
                "eth_getLogs is limited to a 500 blocks range",
                RpcError::RangeTooLarge { suggested: Some(500) },
            ),
            (
                -32_000,
                "block range is too large, max is 1k blocks",
                RpcError::RangeTooLarge { suggested: Some(1000) },
            ),
            (3, "execution reverted: nope", RpcError::Reverted),
            (-32_000, "something else", RpcError::JsonRpc(-32_000)),
        ];
        for (code, message, class) in cases {
            assert_eq!(RpcError::from_object(code, message), class, "{message}");
        }
    }

    #[test]
    fn hostile_texts_suggest_nothing() {
        for text in [
            "block range [0x, 0x]",
            "block range [0x5, 0x1]",
            "99999999999999999999 blocks block range",
            "0 blocks block range",
            "[",
        ] {
            assert!(
                !matches!(RpcError::from_object(-1, text), RpcError::RangeTooLarge { suggested: Some(_) }),
                "{text}"
            );
        }
    }
}
