//! Bad input is refused by name and leaves nothing behind.

use app::config::Auth;
use http::Method;
use serde_json::{Value, json};

use crate::api_calls::{Api, invoice};
use crate::world::recipient;

/// The accepted body with one field changed, or taken out (`null` stays `null`).
fn with(field: &str, value: Value) -> String {
    let mut body = invoice(1);
    body[field] = value;
    body.to_string()
}

fn without(field: &str) -> String {
    let mut body = invoice(1);
    body.as_object_mut().unwrap().remove(field);
    body.to_string()
}

fn nested(depth: usize) -> String {
    let deep = format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    let text = invoice(1).to_string();
    format!("{},\"metadata\":{deep}}}", &text[..text.len() - 1])
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_invoice_is_refused_by_its_field() {
    let api = Api::open(Auth::None).await;
    let above = "115792089237316195423570985008687907853269984665640564039457584007913129639936";
    let checksum = recipient(1).to_checksum(None);
    let flipped: String = checksum
        .char_indices()
        .map(|(i, c)| {
            if i < 2 || !c.is_ascii_alphabetic() {
                c
            } else if c.is_ascii_lowercase() {
                c.to_ascii_uppercase()
            } else {
                c.to_ascii_lowercase()
            }
        })
        .collect();
    let past = "2020-01-01T00:00:00Z";
    let cases: Vec<(&str, String, (u16, &str, &str))> = vec![
        ("empty body", String::new(), (400, "invalid_json", "")),
        ("not JSON", "{".into(), (400, "invalid_json", "")),
        ("an array", "[]".into(), (422, "invalid_field", ".")),
        ("a number", "7".into(), (422, "invalid_field", ".")),
        ("two values", format!("{} {}", invoice(1), invoice(1)), (400, "invalid_json", "")),
        (
            "not UTF-8 escapes",
            with("reference", json!("x")).replace("\"x\"", "\"\\ud800\""),
            (400, "invalid_json", ""),
        ),
        ("unknown field", with("amuont", json!("1")), (422, "invalid_field", "amuont")),
        (
            "repeated key",
            invoice(1).to_string().replacen('{', "{\"amount\":\"1\",", 1),
            (422, "invalid_field", "amount"),
        ),
        (
            "repeated key in metadata",
            with("metadata", json!({"k": 1})).replace("{\"k\":1}", "{\"k\":1,\"k\":2}"),
            (422, "invalid_field", "k"),
        ),
        ("no chain", without("chain"), (422, "invalid_field", "chain")),
        ("no asset", without("asset"), (422, "invalid_field", "asset")),
        ("no amount", without("amount"), (422, "invalid_field", "amount")),
        ("no recipient", without("recipient"), (422, "invalid_field", "recipient")),
        ("null amount", with("amount", Value::Null), (422, "invalid_field", "amount")),
        ("amount as number", with("amount", json!(2_500_000)), (422, "invalid_field", "amount")),
        ("amount as fraction", with("amount", json!(2.5)), (422, "invalid_field", "amount")),
        ("amount as list", with("amount", json!(["1"])), (422, "invalid_field", "amount")),
        ("decimals", with("amount", json!("2.5")), (422, "invalid_field", "amount")),
        ("sign", with("amount", json!("-1")), (422, "invalid_field", "amount")),
        ("plus", with("amount", json!("+1")), (422, "invalid_field", "amount")),
        ("hex", with("amount", json!("0x10")), (422, "invalid_field", "amount")),
        ("exponent", with("amount", json!("1e6")), (422, "invalid_field", "amount")),
        ("space", with("amount", json!(" 1")), (422, "invalid_field", "amount")),
        ("other digits", with("amount", json!("١")), (422, "invalid_field", "amount")),
        ("empty amount", with("amount", json!("")), (422, "invalid_field", "amount")),
        ("zero", with("amount", json!("0")), (422, "invalid_field", "amount")),
        ("zeros", with("amount", json!("000")), (422, "invalid_field", "amount")),
        ("2^256", with("amount", json!(above)), (422, "invalid_field", "amount")),
        ("very long", with("amount", json!("9".repeat(10_000))), (422, "invalid_field", "amount")),
        ("chain not configured", with("chain", json!("eip155:1")), (422, "invalid_field", "chain")),
        (
            "chain of another namespace",
            with("chain", json!("solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp")),
            (422, "invalid_field", "chain"),
        ),
        ("chain as number", with("chain", json!(31337)), (422, "invalid_field", "chain")),
        ("asset unknown", with("asset", json!("DOGE")), (422, "invalid_field", "asset")),
        (
            "asset of another chain",
            with("asset", json!("eip155:1/slip44:60")),
            (422, "invalid_field", "asset"),
        ),
        ("asset short", with("asset", json!("0x1234")), (422, "invalid_field", "asset")),
        (
            "asset zero",
            with("asset", json!(format!("0x{}", "0".repeat(40)))),
            (422, "invalid_field", "asset"),
        ),
        ("recipient checksum", with("recipient", json!(flipped)), (422, "invalid_field", "recipient")),
        ("recipient short", with("recipient", json!("0xabc")), (422, "invalid_field", "recipient")),
        (
            "recipient zero",
            with("recipient", json!(format!("0x{}", "0".repeat(40)))),
            (422, "invalid_field", "recipient"),
        ),
        ("recipient name", with("recipient", json!("vitalik.eth")), (422, "invalid_field", "recipient")),
        (
            "recipient is the token",
            with("recipient", json!(devchain::token::CONTRACTS.dollar.to_string())),
            (422, "invalid_field", "recipient"),
        ),
        ("payer checksum", with("payer", json!(flipped)), (422, "invalid_field", "payer")),
        (
            "expiry in the past",
            with("expires_at", json!(past)).replace("\"expires_in\":3600,", ""),
            (422, "invalid_field", "expires_at"),
        ),
        ("expiry now", with("expires_in", json!(0)), (422, "invalid_field", "expires_in")),
        ("expiry negative", with("expires_in", json!(-5)), (422, "invalid_field", "expires_in")),
        ("expiry far", with("expires_in", json!(u64::MAX)), (422, "invalid_field", "expires_in")),
        (
            "two expiries",
            with("expires_at", json!("2100-01-01T00:00:00Z")),
            (422, "invalid_field", "expires_in"),
        ),
        (
            "expiry no time",
            with("expires_at", json!("tomorrow")).replace("\"expires_in\":3600,", ""),
            (422, "invalid_field", "expires_at"),
        ),
        ("confirmations 0", with("confirmations", json!(0)), (422, "invalid_field", "confirmations")),
        ("confirmations word", with("confirmations", json!("soon")), (422, "invalid_field", "confirmations")),
        (
            "confirmations fraction",
            with("confirmations", json!(1.5)),
            (422, "invalid_field", "confirmations"),
        ),
        ("confirmations list", with("confirmations", json!([1])), (422, "invalid_field", "confirmations")),
        ("reference empty", with("reference", json!("")), (422, "invalid_field", "reference")),
        ("reference long", with("reference", json!("r".repeat(256))), (422, "invalid_field", "reference")),
        ("reference control", with("reference", json!("a\u{0}b")), (422, "invalid_field", "reference")),
        ("reference number", with("reference", json!(7)), (422, "invalid_field", "reference")),
        ("metadata text", with("metadata", json!("text")), (422, "invalid_field", "metadata")),
        ("metadata list", with("metadata", json!([])), (422, "invalid_field", "metadata")),
        (
            "metadata large",
            with("metadata", json!({"k": "x".repeat(20_000)})),
            (422, "invalid_field", "metadata"),
        ),
        ("metadata deep", nested(40), (422, "invalid_field", "body")),
        ("metadata very deep", nested(9_000), (422, "invalid_field", "body")),
        ("body large", with("metadata", json!({"k": "x".repeat(70_000)})), (413, "body_too_large", "body")),
    ];
    let mut wrong = String::new();
    for (name, body, (status, code, field)) in cases {
        let answer = api
            .call(
                Method::POST,
                "/v1/invoices",
                &[("content-type", "application/json"), ("idempotency-key", "bad")],
                body,
            )
            .await;
        let got = answer.problem();
        if got != (status, code.to_owned(), field.to_owned()) {
            wrong += &format!("{name}: expected {status} {code} {field:?}, got {got:?} {}\n", answer.text());
        }
        assert_eq!(answer.json()["outcome"], "did_not_happen", "{name}");
    }
    assert!(wrong.is_empty(), "{wrong}");
    let listed = api.get("/v1/invoices").await.json();
    assert_eq!(listed, json!({"data": [], "next": null}), "nothing is stored");
    assert_eq!(api.get("/v1/events").await.json()["data"], json!([]));
    // The key of a refused request is free for the right one.
    let right = api.post_once("/v1/invoices", "bad", &invoice(1).to_string()).await;
    assert_eq!(right.status, 201, "{}", right.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_accepted_is_told_as_the_contract_says() {
    let api = Api::open(Auth::None).await;
    let hostile = json!({"html": "<script>alert(1)</script>", "sql": "'; drop table invoice; --", "deep": {"a": [1, 2.50, null]}});
    let mut body = invoice(1);
    body["metadata"] = hostile.clone();
    body["reference"] = json!("order \u{202e}42 ' \" <b>");
    let answer = api.post("/v1/invoices", &body).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    let made = answer.json();
    let id = made["id"].as_str().unwrap();
    assert!(id.starts_with("inv_"));
    assert_eq!(made["status"], "open");
    assert_eq!(made["amount"], "2500000");
    assert_eq!(made["amount_paid"], "0");
    assert_eq!(made["metadata"], hostile);
    assert_eq!(made["checkout_url"], format!("https://pay.example.com/i/{id}"));
    assert!(made["pay_uri"].as_str().unwrap().starts_with("ethereum:0x"), "{made}");
    let shown = api.get(&format!("/v1/invoices/{id}")).await.json();
    assert_eq!(shown["metadata"], hostile);
    assert_eq!(shown["payments"], json!([]));
    // A second one that nothing could tell apart is refused, and says what to do.
    let twin = api.post("/v1/invoices", &invoice(1)).await;
    assert_eq!(twin.problem(), (409, "indistinguishable".into(), "amount".into()));
    let canceled = api.post(&format!("/v1/invoices/{id}/cancel"), &json!({})).await;
    assert_eq!(canceled.json()["status"], "canceled", "{}", canceled.text());
    let again = api.post(&format!("/v1/invoices/{id}/cancel"), &json!({})).await;
    assert_eq!(again.problem().1, "invoice_closed");
    let nothing = api.get(&format!("/v1/invoices/{id}/evidence")).await;
    assert_eq!(nothing.problem(), (409, "nothing_paid".into(), String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_bad_requests_are_refused_by_name() {
    let api = Api::open(Auth::None).await;
    let json_type = ("content-type", "application/json");
    let good = invoice(1).to_string();
    let post = |path: &'static str, headers: Vec<(&'static str, String)>, body: String| {
        let api = &api;
        async move {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
            api.call(Method::POST, path, &headers, body).await.problem()
        }
    };
    let typed = |kind: &str| vec![("content-type", kind.to_owned())];
    assert_eq!(post("/v1/invoices", typed("text/plain"), good.clone()).await.0, 415);
    assert_eq!(post("/v1/invoices", vec![], good.clone()).await.0, 415);
    let form = "application/x-www-form-urlencoded";
    assert_eq!(post("/v1/invoices", typed(form), good.clone()).await.0, 415);
    for key in ["", "a b", "é", "\"\"", &"k".repeat(256)] {
        let headers =
            vec![("content-type", "application/json".to_owned()), ("idempotency-key", key.to_owned())];
        let problem = post("/v1/invoices", headers, good.clone()).await;
        assert_eq!(problem, (400, "invalid_header".into(), "Idempotency-Key".into()), "{key}");
    }
    for (path, field) in [
        ("/v1/invoices?limit=0", "limit"),
        ("/v1/invoices?limit=251", "limit"),
        ("/v1/invoices?limit=x", "limit"),
        ("/v1/invoices?limit=1&limit=2", "limit"),
        ("/v1/invoices?after=zzz", "after"),
        ("/v1/invoices?status=paid", "status"),
        ("/v1/invoices?colour=red", "colour"),
        ("/v1/payments?matching=nope", "matching"),
        ("/v1/payments?invoice_id=evt_1", "invoice_id"),
        ("/v1/events?after=AQAAAA", "after"),
        ("/v1/deliveries?status=lost", "status"),
        ("/v1/deliveries?endpoint_id=x", "endpoint_id"),
        ("/v1/dead-letters?since=yesterday", "since"),
        ("/v1/chains?x=1", "x"),
    ] {
        assert_eq!(api.get(path).await.problem(), (422, "invalid_field".into(), field.into()), "{path}");
    }
    for path in [
        "/v1/invoices/inv_nothing",
        "/v1/invoices/inv_00000000000000000000000000000000",
        "/v1/invoices/../../etc/passwd",
        "/v1/webhook-endpoints/whe_00000000000000000000000000000000",
        "/v1/deliveries/x",
        "/v1/nothing",
        "/assets/../Cargo.toml",
        "/%2e%2e/%2e%2e/etc/passwd",
    ] {
        assert_eq!(api.get(path).await.problem().0, 404, "{path}");
    }
    let wrong_method = api.call(Method::PUT, "/v1/invoices", &[json_type], good).await;
    assert_eq!(wrong_method.problem().1, "method_not_allowed");
    assert!(wrong_method.header("allow").contains("POST"), "{:?}", wrong_method.headers);
    for (body, field) in [
        (json!({"url": "ftp://x.example"}), "url"),
        (json!({"url": "https://10.0.0.1/x"}), "url"),
        (json!({"url": "https://u:p@x.example/"}), "url"),
        (json!({"url": "https://169.254.169.254/latest"}), "url"),
        (json!({"url": 5}), "url"),
        (json!({}), "url"),
        (json!({"url": "http://127.0.0.1:9/x", "event_types": []}), "event_types"),
        (json!({"url": "http://127.0.0.1:9/x", "event_types": ["*", "invoice.paid"]}), "event_types[1]"),
        (json!({"url": "http://127.0.0.1:9/x", "event_types": "*"}), "event_types"),
        (json!({"url": "http://127.0.0.1:9/x", "description": "a\nb"}), "description"),
        (json!({"url": "http://127.0.0.1:9/x", "secret": "mine"}), "secret"),
    ] {
        let answer = api.post("/v1/webhook-endpoints", &body).await;
        assert_eq!(
            answer.problem(),
            (422, "invalid_field".into(), field.into()),
            "{body}: {}",
            answer.text()
        );
    }
    for (body, field) in [
        (json!({"since": 5}), "since"),
        (json!({"since": "x"}), "since"),
        (json!({"limit": 0}), "limit"),
        (json!({"limit": 251}), "limit"),
        (json!({"dry_run": "yes"}), "dry_run"),
        (json!({"after": "!"}), "after"),
    ] {
        let answer = api.post("/v1/dead-letters/replay", &body).await;
        assert_eq!(answer.problem(), (422, "invalid_field".into(), field.into()), "{body}");
    }
    assert_eq!(api.get("/v1/webhook-endpoints").await.json()["data"], json!([]), "nothing is stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_go_on_where_they_broke_off() {
    let api = Api::open(Auth::None).await;
    let mut made = Vec::new();
    for number in 1..=7 {
        let answer = api.post("/v1/invoices", &invoice(number)).await.json();
        made.push(answer["id"].as_str().unwrap().to_owned());
    }
    made.reverse();
    let (mut seen, mut after) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("/v1/invoices?limit=3&after={after}")).await.json();
        seen.extend(page["data"].as_array().unwrap().iter().map(|i| i["id"].as_str().unwrap().to_owned()));
        assert!(page["data"].as_array().unwrap().len() <= 3);
        match page["next"].as_str() {
            Some(next) => after = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(seen, made);
    assert_eq!(api.get("/v1/invoices?limit=7").await.json()["next"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_lives_its_life() {
    let api = Api::open(Auth::None).await;
    let url = api.world.merchant.url("/hook");
    let made = api.post("/v1/webhook-endpoints", &json!({"url": url, "description": "<b>shop</b>"})).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let made = made.json();
    let secret = made["secret"].as_str().unwrap();
    assert!(secret.starts_with("whsec_"));
    assert_eq!(made["event_types"], json!(["*"]));
    let path = format!("/v1/webhook-endpoints/{}", made["id"].as_str().unwrap());
    let shown = api.get(&path).await;
    assert!(!shown.text().contains("whsec_"), "a secret is shown once");
    assert!(!api.get("/v1/webhook-endpoints").await.text().contains("whsec_"));
    let change = json!({"event_types": ["invoice.*"], "enabled": false}).to_string();
    let changed =
        api.call(Method::PATCH, &path, &[("content-type", "application/json")], change).await.json();
    assert_eq!(changed["event_types"], json!(["invoice.*"]));
    assert_eq!(changed["enabled"], false);
    let rotated = api.post(&format!("{path}/rotate-secret"), &json!({})).await.json();
    assert_ne!(rotated["secret"], made["secret"]);
    assert!(rotated["old_secret_until"].is_string());
    let deleted = api.call(Method::DELETE, &path, &[], "").await;
    assert_eq!((deleted.status.as_u16(), deleted.body.len()), (204, 0));
    assert_eq!(api.get(&path).await.problem().0, 404);
    assert_eq!(api.call(Method::DELETE, &path, &[], "").await.problem().0, 404);
}
