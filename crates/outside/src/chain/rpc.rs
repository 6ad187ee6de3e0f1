//! One JSON-RPC call to one endpoint: the port, and its implementation over HTTP.
//!
//! Guarantees: an answer is the `result` of a response object whose id is ours; everything else is a
//! classified [`RpcError`]. A 200 that carries an error is an error. Time and bytes are bounded by the
//! call itself. An endpoint's address, which often holds a key, is in no error and no log.
//!
//! Deliberately absent: retries, votes and any knowledge of methods. Never websockets, never
//! server-side filters: both lose events without saying so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use ::http::{Method, StatusCode};
use bytes::Bytes;
use domain::time::Clock;
use futures::future::BoxFuture;
use serde::Deserialize;
use serde_json::value::RawValue;
use url::Url;

use super::error::RpcError;
use crate::http::retry_after::retry_after;
use crate::http::{BodyEnd, Http, HttpErrorKind, Request, Sent};

/// However long an endpoint asks to be left alone, it is tried again after this.
const LONGEST_REST: Duration = Duration::from_secs(3_600);

/// What to ask an endpoint.
#[derive(Debug, Clone)]
pub struct Call {
    /// The method's name.
    pub method: &'static str,
    /// The parameters, as a JSON array.
    pub params: String,
    /// The whole time the call may take.
    pub deadline: Duration,
    /// No larger answer is read, in bytes.
    pub max_bytes: usize,
    /// Whether it may be sent again after a failure that may have come after its delivery.
    pub repeatable: bool,
}

impl Call {
    /// Answers to small questions: numbers, headers, receipts of one transaction.
    pub const SMALL: usize = 4 * 1024 * 1024;
    /// Answers that hold a whole block.
    pub const BLOCK: usize = 48 * 1024 * 1024;

    /// A call with the limits of a small question and the endpoint's own deadline, which the caller of
    /// [`super::provider::Provider`] need not know.
    #[must_use]
    pub fn new(method: &'static str, params: impl Into<String>) -> Self {
        Self {
            method,
            params: params.into(),
            deadline: Duration::MAX,
            max_bytes: Self::SMALL,
            repeatable: true,
        }
    }

    /// The same with room for a whole block.
    #[must_use]
    pub fn block_sized(self) -> Self {
        Self { max_bytes: Self::BLOCK, ..self }
    }
}

/// One JSON-RPC endpoint. The process has one real kind, [`HttpRpc`]; simulation has a second.
pub trait Rpc: Send + Sync + 'static {
    /// Asks once, and waits at most the call's deadline.
    ///
    /// The answer is the raw `result`, which may be `null`.
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Box<RawValue>, RpcError>>;
}

/// JSON-RPC 2.0 over HTTP POST.
pub struct HttpRpc {
    http: Arc<dyn Http>,
    clock: Arc<dyn Clock>,
    url: Url,
    headers: HeaderMap,
    next_id: AtomicU64,
}

impl std::fmt::Debug for HttpRpc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpRpc").field("host", &self.url.host_str()).finish_non_exhaustive()
    }
}

impl HttpRpc {
    /// An endpoint at `url`.
    #[must_use]
    pub fn new(http: Arc<dyn Http>, clock: Arc<dyn Clock>, url: Url) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        Self { http, clock, url, headers, next_id: AtomicU64::new(1) }
    }

    /// The same with one more header, such as an endpoint's key.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    async fn post(&self, call: Call) -> Result<Box<RawValue>, RpcError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let body =
            format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{}","params":{}}}"#, call.method, call.params);
        let request = Request {
            method: Method::POST,
            url: self.url.clone(),
            headers: self.headers.clone(),
            body: Bytes::from(body),
            deadline: call.deadline,
            max_response_bytes: call.max_bytes,
        };
        let response = self.http.send(request).await.map_err(|error| match error.kind {
            HttpErrorKind::Timeout(_) => RpcError::Timeout,
            _ => RpcError::Transport { maybe_delivered: error.sent == Sent::Maybe },
        })?;
        let whole = match response.ended {
            BodyEnd::Whole => Ok(()),
            BodyEnd::CutAtLimit => Err(RpcError::TooLarge),
            BodyEnd::OutOfTime => Err(RpcError::Timeout),
            BodyEnd::Broken => Err(RpcError::Transport { maybe_delivered: true }),
        };
        if response.status == StatusCode::TOO_MANY_REQUESTS {
            return Err(RpcError::RateLimited {
                retry_after: retry_after(&response.headers, self.clock.now(), LONGEST_REST),
            });
        }
        if !response.status.is_success() {
            // Some endpoints put a JSON-RPC error into a 4xx or 5xx; that says more than the status.
            return Err(match whole.and_then(|()| read_response(&response.body, id)) {
                Err(
                    error @ (RpcError::NotFound
                    | RpcError::Unsupported
                    | RpcError::InvalidParams
                    | RpcError::RangeTooLarge { .. }
                    | RpcError::RateLimited { .. }),
                ) => error,
                _ => RpcError::Http(response.status.as_u16()),
            });
        }
        whole?;
        read_response(&response.body, id)
    }
}

impl Rpc for HttpRpc {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Box<RawValue>, RpcError>> {
        Box::pin(self.post(call))
    }
}

/// Reads a JSON-RPC 2.0 response object.
///
/// # Errors
/// The classified error object; malformed when it is not one response to the request `id`.
pub fn read_response(body: &[u8], id: u64) -> Result<Box<RawValue>, RpcError> {
    #[derive(Deserialize)]
    struct Response<'a> {
        #[serde(borrow, default)]
        id: Option<&'a RawValue>,
        #[serde(borrow, default)]
        result: Option<&'a RawValue>,
        #[serde(borrow, default)]
        error: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct ErrorObject {
        code: i64,
        #[serde(default)]
        message: String,
    }
    let response: Response<'_> =
        serde_json::from_slice(body).map_err(|_| RpcError::Malformed("JSON-RPC response"))?;
    if let Some(error) = response.error.filter(|raw| raw.get() != "null") {
        let object: ErrorObject =
            serde_json::from_str(error.get()).map_err(|_| RpcError::Malformed("JSON-RPC error"))?;
        return Err(RpcError::from_object(object.code, &object.message));
    }
    // The id decides whether this is the answer to our question or to somebody else's.
    let ours = id.to_string();
    if response.id.map(RawValue::get) != Some(ours.as_str()) {
        return Err(RpcError::Malformed("JSON-RPC id"));
    }
    // An absent result is not a null result: `Option<&RawValue>` reads `null` as absent, so look again.
    match response.result {
        Some(result) => Ok(result.to_owned()),
        None => null_result(body),
    }
}

fn null_result(body: &[u8]) -> Result<Box<RawValue>, RpcError> {
    #[derive(Deserialize)]
    struct Present<'a> {
        #[serde(borrow)]
        result: &'a RawValue,
    }
    serde_json::from_slice::<Present<'_>>(body)
        .map(|present| present.result.to_owned())
        .map_err(|_| RpcError::Malformed("JSON-RPC response without result"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_result_with_our_id_is_an_answer() {
        let read = |body: &str| read_response(body.as_bytes(), 7).map(|raw| raw.get().to_owned());
        assert_eq!(read(r#"{"jsonrpc":"2.0","id":7,"result":"0x1"}"#).as_deref(), Ok(r#""0x1""#));
        assert_eq!(read(r#"{"jsonrpc":"2.0","id":7,"result":null}"#).as_deref(), Ok("null"));
        assert_eq!(read(r#"{"id":7,"result":[],"error":null}"#).as_deref(), Ok("[]"));
        for body in [
            r#"{"jsonrpc":"2.0","id":8,"result":"0x1"}"#,
            r#"{"jsonrpc":"2.0","result":"0x1"}"#,
            r#"{"jsonrpc":"2.0","id":7}"#,
            r#"[{"jsonrpc":"2.0","id":7,"result":"0x1"}]"#,
            r#"{"jsonrpc":"2.0","id":7,"result":"0x1""#,
            "<html>502 Bad Gateway</html>",
            "",
        ] {
            assert!(matches!(read(body), Err(RpcError::Malformed(_))), "{body}");
        }
    }

    #[test]
    fn an_error_in_a_success_is_an_error() {
        let body =
            br#"{"jsonrpc":"2.0","id":7,"result":[],"error":{"code":-32000,"message":"header not found"}}"#;
        assert_eq!(read_response(body, 7).map(|_| ()), Err(RpcError::NotFound));
        let body = br#"{"jsonrpc":"2.0","id":7,"error":"overloaded"}"#;
        assert_eq!(read_response(body, 7).map(|_| ()), Err(RpcError::Malformed("JSON-RPC error")));
    }
}
