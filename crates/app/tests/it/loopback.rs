//! A plain HTTP client for loopback, and JSON-RPC over it: independent of the product's, which is what is tested.

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Http(Client<HttpConnector, Full<Bytes>>);

impl Http {
    pub(crate) fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self(Client::builder(TokioExecutor::new()).build(connector))
    }

    /// Status and body; an error when no whole answer came.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: &str,
        key: Option<&str>,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), String> {
        let mut request =
            Request::builder().method(method).uri(url).header("content-type", "application/json");
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let request = request.body(Full::new(body)).unwrap();
        let answer = self.0.request(request).await.map_err(|error| format!("{error:?}"))?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|error| format!("{error:?}"))?;
        Ok((status, body.to_bytes()))
    }
}

/// A JSON-RPC endpoint. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Rpc {
    http: Http,
    url: String,
}

impl Rpc {
    pub(crate) fn new(http: Http, url: String) -> Self {
        Self { http, url }
    }

    /// The result, or the error object.
    pub(crate) async fn ask(&self, method: &str, params: &Value) -> Result<Value, Value> {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
        let (_, answer) = self
            .http
            .send(Method::POST, &self.url, None, body.into())
            .await
            .unwrap_or_else(|error| panic!("{method}: {error}"));
        let mut answer: Value = serde_json::from_slice(&answer).unwrap();
        match answer.get_mut("error") {
            Some(error) => Err(error.take()),
            None => Ok(answer["result"].take()),
        }
    }

    /// The result of a call that must not fail.
    pub(crate) async fn result(&self, method: &str, params: Value) -> Value {
        self.ask(method, &params).await.unwrap_or_else(|error| panic!("{method} {params}: {error}"))
    }
}
