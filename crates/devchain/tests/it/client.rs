//! A plain JSON-RPC client over HTTP, independent of the crate under test.

use alloy_primitives::B256;
use alloy_rpc_types_eth as rpc;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub(crate) struct Rpc {
    http: Client<HttpConnector, Full<Bytes>>,
    url: String,
}

pub(crate) struct Raw {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Result<Bytes, String>,
}

impl Rpc {
    pub(crate) fn new(url: String) -> Self {
        Self { http: Client::builder(TokioExecutor::new()).build_http(), url }
    }

    /// Sends a body; an error means no response at all.
    pub(crate) async fn post(&self, body: &Value) -> Result<Raw, String> {
        let request = Request::post(&self.url)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body.to_string())))
            .unwrap();
        let response = self.http.request(request).await.map_err(|e| format!("{e:?}"))?;
        let (parts, body) = response.into_parts();
        Ok(Raw {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await.map(|b| b.to_bytes()).map_err(|e| format!("{e:?}")),
        })
    }

    /// The whole response object of one call.
    pub(crate) async fn response(&self, method: &str, params: Value) -> Value {
        let body = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
        let raw = self.post(&body).await.unwrap();
        assert_eq!(raw.status, 200);
        let value: Value = serde_json::from_slice(&raw.body.unwrap()).unwrap();
        assert_eq!(value["id"], 7);
        value
    }

    pub(crate) async fn result(&self, method: &str, params: Value) -> Value {
        let mut response = self.response(method, params).await;
        assert!(response.get("error").is_none(), "{method}: {response}");
        response["result"].take()
    }

    pub(crate) async fn error(&self, method: &str, params: Value) -> (i64, String) {
        let response = self.response(method, params).await;
        let error = &response["error"];
        assert!(error.is_object(), "{method}: {response}");
        (error["code"].as_i64().unwrap(), error["message"].as_str().unwrap().to_owned())
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, method: &str, params: Value) -> T {
        let result = self.result(method, params).await;
        serde_json::from_value(result.clone()).unwrap_or_else(|e| panic!("{method}: {e}: {result}"))
    }

    pub(crate) async fn block(&self, number: u64) -> Option<rpc::Block> {
        self.get("eth_getBlockByNumber", json!([format!("{number:#x}"), true])).await
    }

    pub(crate) async fn receipts(&self, hash: B256) -> Option<Vec<rpc::TransactionReceipt>> {
        self.get("eth_getBlockReceipts", json!([hash])).await
    }

    pub(crate) async fn logs_at(&self, hash: B256) -> Vec<rpc::Log> {
        self.get("eth_getLogs", json!([{"blockHash": hash}])).await
    }
}
