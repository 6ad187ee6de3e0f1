//! Why there is no answer, and whether the request may have been delivered all the same.
//!
//! Guarantees: the shown text and the code are coarse: they never name an address, a network range or
//! anything the other side sent, so that an error cannot be used to look around in our network. What
//! operators need is in [`HttpError::detail`], for logs alone. [`Sent::Not`] is only said when not
//! one byte of the request was handed to the connection.
//!
//! Deliberately absent: any judgement of a status. An answer with status 500 is an answer.

use std::fmt;

use super::target::TargetRefused;

/// Whether the request may have reached the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sent {
    /// Not one byte of it left.
    Not,
    /// Some of it left: the other side may have acted on it.
    Maybe,
}

/// The step at which time ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Finding the addresses of the name.
    Resolve,
    /// Opening the connection.
    Connect,
    /// The TLS handshake.
    Tls,
    /// Waiting for the connection to take the request.
    Send,
    /// Waiting for the status and headers.
    Head,
}

/// What was wrong with TLS. RFC 5280, RFC 6125 and RFC 8446 in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsFault {
    /// The certificate is past its end.
    Expired,
    /// The certificate is not valid yet.
    NotYetValid,
    /// The certificate is for another name.
    WrongName,
    /// Nobody we trust vouches for the certificate (self-signed, unknown or missing issuer).
    UnknownIssuer,
    /// The certificate was revoked.
    Revoked,
    /// Another fault of the certificate.
    BadCertificate,
    /// No common version or cipher (TLS 1.0 and 1.1 are not spoken).
    Incompatible,
    /// The other side ended the handshake with an alert.
    Alert,
    /// The other side does not speak TLS properly, or hung up during the handshake.
    Broken,
}

/// What was wrong with the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProtocolFault {
    /// More header bytes, more header fields or more informational answers than we read.
    TooLarge,
    /// Not HTTP/1.
    Malformed,
}

/// The class of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HttpErrorKind {
    /// We do not ask this target.
    Refused(TargetRefused),
    /// The request itself cannot be sent: a header that belongs to the client, say.
    InvalidRequest,
    /// The name does not exist, or has no address. Theirs to mend.
    NameNotFound,
    /// The name could not be looked up. Says nothing about the target.
    NameLookupFailed,
    /// Nobody listens there.
    ConnectRefused,
    /// The connection could not be opened for another reason.
    ConnectFailed,
    /// The TLS handshake failed.
    Tls(TlsFault),
    /// Time ran out before the status and headers were there.
    Timeout(Phase),
    /// The connection ended before the status and headers were there.
    Reset,
    /// What came is not an answer that we read.
    Protocol(ProtocolFault),
}

impl HttpErrorKind {
    /// The stable word for records, metrics and people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused(refused) => refused.as_str(),
            Self::InvalidRequest => "invalid_request",
            Self::NameNotFound => "dns_not_found",
            Self::NameLookupFailed => "dns_failed",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectFailed => "connect_failed",
            Self::Tls(fault) => match fault {
                TlsFault::Expired => "tls_expired",
                TlsFault::NotYetValid => "tls_not_yet_valid",
                TlsFault::WrongName => "tls_wrong_name",
                TlsFault::UnknownIssuer => "tls_unknown_issuer",
                TlsFault::Revoked => "tls_revoked",
                TlsFault::BadCertificate => "tls_bad_certificate",
                TlsFault::Incompatible => "tls_incompatible",
                TlsFault::Alert => "tls_alert",
                TlsFault::Broken => "tls_broken",
            },
            Self::Timeout(phase) => match phase {
                Phase::Resolve => "timeout_resolve",
                Phase::Connect => "timeout_connect",
                Phase::Tls => "timeout_tls",
                Phase::Send => "timeout_send",
                Phase::Head => "timeout_answer",
            },
            Self::Reset => "connection_reset",
            Self::Protocol(ProtocolFault::TooLarge) => "answer_too_large",
            Self::Protocol(ProtocolFault::Malformed) => "answer_malformed",
        }
    }

    /// Whether this says something about the target, so that a breaker should count it. A refusal of
    /// ours and a failing resolver of ours do not.
    #[must_use]
    pub const fn is_the_targets(self) -> bool {
        !matches!(
            self,
            Self::Refused(_) | Self::InvalidRequest | Self::NameLookupFailed | Self::Timeout(Phase::Resolve)
        )
    }
}

impl fmt::Display for HttpErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused(refused) => return refused.fmt(f),
            Self::InvalidRequest => "the request cannot be sent",
            Self::NameNotFound => "the name has no address",
            Self::NameLookupFailed => "the name could not be looked up",
            Self::ConnectRefused => "the connection was refused",
            Self::ConnectFailed => "the connection could not be opened",
            Self::Tls(TlsFault::Expired) => "the certificate has expired",
            Self::Tls(TlsFault::NotYetValid) => "the certificate is not valid yet",
            Self::Tls(TlsFault::WrongName) => "the certificate is for another name",
            Self::Tls(TlsFault::UnknownIssuer) => "the certificate's issuer is not trusted",
            Self::Tls(TlsFault::Revoked) => "the certificate was revoked",
            Self::Tls(TlsFault::BadCertificate) => "the certificate is not acceptable",
            Self::Tls(TlsFault::Incompatible) => "no TLS version and cipher in common",
            Self::Tls(TlsFault::Alert) => "the other side ended the TLS handshake",
            Self::Tls(TlsFault::Broken) => "the TLS handshake failed",
            Self::Timeout(Phase::Resolve) => "the name was not resolved in time",
            Self::Timeout(Phase::Connect) => "the connection was not open in time",
            Self::Timeout(Phase::Tls) => "the TLS handshake was not done in time",
            Self::Timeout(Phase::Send) => "the request was not taken in time",
            Self::Timeout(Phase::Head) => "no answer in time",
            Self::Reset => "the connection ended before the answer",
            Self::Protocol(ProtocolFault::TooLarge) => "the answer's head is too large",
            Self::Protocol(ProtocolFault::Malformed) => "the answer is not HTTP/1.1",
        })
    }
}

/// There is no answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{kind}")]
pub struct HttpError {
    /// Why.
    pub kind: HttpErrorKind,
    /// Whether the request may have been delivered all the same.
    pub sent: Sent,
    detail: String,
}

impl HttpError {
    /// A failure. `detail` is for operators' logs and is never shown to others.
    #[must_use]
    pub fn new(kind: HttpErrorKind, sent: Sent, detail: impl Into<String>) -> Self {
        Self { kind, sent, detail: detail.into() }
    }

    /// A failure before anything was sent.
    pub(super) fn unsent(kind: HttpErrorKind, detail: impl Into<String>) -> Self {
        Self::new(kind, Sent::Not, detail)
    }

    /// What operators need to know more: may name addresses. For logs alone.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl From<TargetRefused> for HttpError {
    fn from(refused: TargetRefused) -> Self {
        Self::unsent(HttpErrorKind::Refused(refused), "")
    }
}
