//! A request with an Idempotency-Key is done once, however often and wherever it is repeated.

use std::time::Duration;

use app::config::Auth;
use domain::time::Clock;
use durable::store::StoreError;
use durable::store::idempotency::{self, Begun};
use futures::future::join_all;
use http::Method;
use outside::clock::SystemClock;
use serde_json::json;

use crate::api_calls::{Api, invoice};

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_gets_the_first_answer_also_after_a_restart() {
    let api = Api::open(Auth::None).await;
    let body = invoice(1).to_string();
    let first = api.post_once("/v1/invoices", "k1", &body).await;
    assert_eq!(first.status, 201);
    assert_eq!(first.header("idempotent-replayed"), "");
    let spaced = body.replace(',', " ,\n ");
    for (key, body) in [("k1", &body), ("\"k1\"", &body), ("k1", &spaced)] {
        let again = api.post_once("/v1/invoices", key, body).await;
        assert_eq!((again.status, &again.body), (first.status, &first.body));
        assert_eq!(again.header("idempotent-replayed"), "true");
        assert_eq!(again.header("content-type"), "application/json");
    }
    let api = api.restart().await;
    let after = api.post_once("/v1/invoices", "k1", &body).await;
    assert_eq!((after.status, &after.body), (first.status, &first.body));
    assert_eq!(api.get("/v1/invoices").await.json()["data"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_gets_the_first_answer_also_when_it_would_be_refused_by_now() {
    let api = Api::open(Auth::None).await;
    let clock = SystemClock::new();
    let mut body = invoice(1);
    body["expires_at"] = json!((clock.now() + Duration::from_millis(700)).to_string());
    body.as_object_mut().unwrap().remove("expires_in");
    let first = api.post_once("/v1/invoices", "k1", &body.to_string()).await;
    assert_eq!(first.status, 201);
    clock.sleep(Duration::from_millis(800)).await;
    assert_eq!(api.post_once("/v1/invoices", "k2", &body.to_string()).await.problem().2, "expires_at");
    let again = api.post_once("/v1/invoices", "k1", &body.to_string()).await;
    assert_eq!((again.status, &again.body), (first.status, &first.body));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_request_with_the_same_key_is_refused() {
    let api = Api::open(Auth::None).await;
    let first = api.post_once("/v1/invoices", "k1", &invoice(1).to_string()).await;
    let other = api.post_once("/v1/invoices", "k1", &invoice(2).to_string()).await;
    assert_eq!(other.problem(), (422, "idempotency_mismatch".into(), "Idempotency-Key".into()));
    assert_eq!(other.json()["outcome"], "did_not_happen");
    // The same key on another route is another key; on another invoice of one route it is a mismatch.
    let id = first.json()["id"].as_str().unwrap().to_owned();
    let cancel = format!("/v1/invoices/{id}/cancel");
    assert_eq!(api.post_once(&cancel, "k1", "").await.status, 200);
    assert_eq!(api.post_once(&cancel, "k1", "").await.header("idempotent-replayed"), "true");
    let elsewhere = "/v1/invoices/inv_00000000000000000000000000000000/cancel";
    assert_eq!(api.post_once(elsewhere, "k1", "").await.problem().1, "idempotency_mismatch");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_one_is_under_way_the_outcome_is_unknown() {
    let api = Api::open(Auth::None).await;
    let store = &api.app.store;
    let incarnation = store.incarnation();
    let begun: Result<Begun, StoreError> = store
        .write(move |tx| {
            // What the handler would claim for this request, left open.
            let fingerprint = [0; 32];
            idempotency::begin(tx, incarnation, "local POST /v1/invoices", "k1", &fingerprint)
        })
        .await;
    assert_eq!(begun.unwrap(), Begun::Fresh);
    let other = api.post_once("/v1/invoices", "k1", &invoice(1).to_string()).await;
    assert_eq!(other.problem().1, "idempotency_mismatch", "the claim is found under the same scope");
    let body = invoice(1).to_string();
    let fingerprint = fingerprint_of("POST", "/v1/invoices", &body);
    let begun: Result<Begun, StoreError> = store
        .write(move |tx| idempotency::begin(tx, incarnation, "local POST /v1/invoices", "k2", &fingerprint))
        .await;
    assert_eq!(begun.unwrap(), Begun::Fresh);
    let in_flight = api.post_once("/v1/invoices", "k2", &body).await;
    assert_eq!(in_flight.problem(), (409, "idempotency_in_flight".into(), "Idempotency-Key".into()));
    assert_eq!(in_flight.json()["outcome"], "unknown");
    // A new run of the process knows that nothing was done, and lets the request through.
    let api = api.restart().await;
    assert_eq!(api.post_once("/v1/invoices", "k2", &body).await.status, 201);
}

fn fingerprint_of(method: &str, path: &str, body: &str) -> [u8; 32] {
    use sha2::Digest as _;
    let mut hash = sha2::Sha256::new();
    for part in [method, path] {
        hash.update(part.len().to_be_bytes());
        hash.update(part);
    }
    hash.update(serde_json::from_str::<serde_json::Value>(body).unwrap().to_string());
    hash.finalize().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_once_one_is_done() {
    let api = Api::open(Auth::None).await;
    let body = invoice(1).to_string();
    let answers = join_all((0..40).map(|_| api.post_once("/v1/invoices", "storm", &body))).await;
    let fresh = answers.iter().filter(|answer| answer.header("idempotent-replayed").is_empty()).count();
    assert_eq!(fresh, 1);
    assert!(answers.iter().all(|answer| answer.status == 201 && answer.body == answers[0].body));
    assert_eq!(api.get("/v1/invoices").await.json()["data"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_belong_to_their_caller() {
    let api = Api::open(Auth::Keys).await;
    let ((one, _), (other, _)) = (api.key("write").await, api.key("write").await);
    let call = |key: String, number: u8| {
        let api = &api;
        async move {
            let headers = [
                ("content-type", "application/json"),
                ("authorization", key.as_str()),
                ("idempotency-key", "same"),
            ];
            api.call(Method::POST, "/v1/invoices", &headers, invoice(number).to_string()).await
        }
    };
    assert_eq!(call(one.clone(), 1).await.status, 201);
    assert_eq!(call(other, 2).await.status, 201);
    assert_eq!(call(one, 1).await.header("idempotent-replayed"), "true");
}
