//! Who may do what: every route with every kind of credential; and the document says the same as the routes.

use std::collections::BTreeSet;

use app::api::{PUBLIC, document_json};
use app::config::Auth;
use durable::store::{StoreError, api_key};
use http::Method;
use serde_json::Value;

use crate::api_calls::{Api, invoice};

/// Method, path and the scope that the document asks for; none for public routes.
fn operations() -> Vec<(Method, String, Option<String>)> {
    let document: Value = serde_json::from_str(&document_json()).unwrap();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let scope = operation["security"][0]["key"][0].as_str().map(str::to_owned);
            operations.push((method.to_uppercase().parse().unwrap(), path.clone(), scope));
        }
    }
    operations
}

/// A path with its parameters filled in by ids that name nothing.
fn filled(path: &str) -> String {
    let prefix = match path {
        path if path.contains("/invoices/") => "inv",
        path if path.contains("/payments/") => "pay",
        path if path.contains("/webhook-endpoints/") => "whe",
        _ => "dlv",
    };
    path.replace("{id}", &format!("{prefix}_00000000000000000000000000000000"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_with_every_credential() {
    let api = Api::open(Auth::Keys).await;
    let (revoked, id) = api.key("admin").await;
    let done: Result<bool, StoreError> = api.app.store.write(move |tx| api_key::revoke(tx, id)).await;
    assert!(done.unwrap());
    let (read, write, admin) = (api.key("read").await.0, api.key("write").await.0, api.key("admin").await.0);
    let (nonsense, _) = api.key("everything").await;
    let unknown = format!("Bearer {}", *app::api::auth::mint_key(&domain::chance::Chance::from_seed(1)));
    let mut typo = read.clone();
    typo.push('x');
    let level = |scope: &str| ["read", "write", "admin"].iter().position(|known| *known == scope).unwrap();
    let credentials: [(&str, Option<&str>, Option<usize>); 9] = [
        ("none", None, None),
        ("unknown", Some(&unknown), None),
        ("typing error", Some(&typo), None),
        ("revoked", Some(&revoked), None),
        ("scope that is none", Some(&nonsense), None),
        ("basic", Some("Basic cXVpdDp0YW5jZQ=="), None),
        ("read", Some(&read), Some(0)),
        ("write", Some(&write), Some(1)),
        ("admin", Some(&admin), Some(2)),
    ];
    let mut tried = 0;
    for (method, path, scope) in operations() {
        assert_eq!(
            scope.is_none(),
            PUBLIC.contains(&path.as_str()),
            "{path}: the document and the list of public routes"
        );
        for (name, value, has) in &credentials {
            if path == "/v1/events/stream" && has.is_some() {
                continue; // It would not end; it is followed in a test of its own.
            }
            let mut headers = vec![("content-type", "application/json")];
            headers.extend(value.map(|value| ("authorization", value)));
            let answer = api.call(method.clone(), &filled(&path), &headers, "{}").await;
            let status = answer.status.as_u16();
            let case = format!("{method} {path} with {name}: {status} {}", answer.text());
            match (&scope, has) {
                (None, _) => assert!(status != 401 && status != 403, "{case}"),
                (Some(_), None) => {
                    assert_eq!(status, 401, "{case}");
                    assert!(answer.header("www-authenticate").starts_with("Bearer"), "{case}");
                }
                (Some(scope), Some(has)) if *has < level(scope) => assert_eq!(status, 403, "{case}"),
                (Some(_), Some(_)) => assert!(status != 401 && status != 403 && status < 500, "{case}"),
            }
            tried += 1;
        }
    }
    assert!(tried > 180, "{tried}");
    let two = [("authorization", read.as_str()), ("authorization", read.as_str())];
    assert_eq!(api.call(Method::GET, "/v1/invoices", &two, "").await.status, 401, "two keys are none");
    assert_eq!(api.get(&format!("/v1/invoices?key={}", &read[7..])).await.status, 401, "no key in a query");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_ask_for_a_key_too() {
    let api = Api::open(Auth::Keys).await;
    let (key, _) = api.key("read").await;
    for path in ["/", "/invoices/inv_00000000000000000000000000000000", "/live"] {
        let answer = api.get(path).await;
        assert_eq!(answer.status, 401, "{path}");
        assert!(!answer.text().contains("<table"), "{path}");
    }
    let form = [("content-type", "application/x-www-form-urlencoded")];
    assert_eq!(api.call(Method::POST, "/session", &form, "key=qk_wrong").await.status, 401);
    let begun = api.call(Method::POST, "/session", &form, format!("key={}", &key[7..])).await;
    assert_eq!(begun.status, 303);
    let cookie = begun.header("set-cookie");
    for attribute in ["HttpOnly", "SameSite=Strict", "Secure", "Path=/"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    let session = cookie.split(';').next().unwrap().to_owned();
    assert!(!session.contains(&key[7..]), "the cookie is not the key");
    let with = |path: &'static str| {
        let (api, session) = (&api, session.clone());
        async move { api.call(Method::GET, path, &[("cookie", &session)], "").await }
    };
    assert_eq!(with("/").await.status, 200);
    assert_eq!(with("/v1/invoices").await.status, 401, "the API takes no cookies");
    let ended = api.call(Method::POST, "/session/end", &[("cookie", &session)], "").await;
    assert_eq!(ended.status, 303);
    assert_eq!(with("/").await.status, 401);
    // A session ends with its key.
    let (key, id) = api.key("read").await;
    let begun = api.call(Method::POST, "/session", &form, format!("key={}", &key[7..])).await;
    let session = begun.header("set-cookie").split(';').next().unwrap().to_owned();
    assert_eq!(api.call(Method::GET, "/", &[("cookie", &session)], "").await.status, 200);
    let revoked: Result<bool, StoreError> = api.app.store.write(move |tx| api_key::revoke(tx, id)).await;
    assert!(revoked.unwrap());
    assert_eq!(api.call(Method::GET, "/", &[("cookie", &session)], "").await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_web_pages_cannot_act() {
    let api = Api::open(Auth::None).await;
    let body = invoice(1).to_string();
    for headers in [
        vec![("sec-fetch-site", "cross-site")],
        vec![("origin", "https://evil.example")],
        vec![("host", "evil.example")],
    ] {
        let mut all = vec![("content-type", "application/json")];
        all.extend(headers.clone());
        let answer = api.call(Method::POST, "/v1/invoices", &all, body.clone()).await;
        assert_eq!(answer.problem(), (403, "cross_site".into(), String::new()), "{headers:?}");
    }
    assert_eq!(api.call(Method::GET, "/v1/invoices", &[("host", "evil.example")], "").await.status, 403);
    let own = [
        ("content-type", "application/json"),
        ("origin", "https://pay.example.com"),
        ("host", "pay.example.com"),
    ];
    let answer = api.call(Method::POST, "/v1/invoices", &own, body).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert!(answer.json()["checkout_url"].as_str().unwrap().starts_with("https://pay.example.com/"));
    assert_eq!(answer.header("access-control-allow-origin"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_protects_its_reader() {
    let api = Api::open(Auth::None).await;
    for path in ["/", "/v1/invoices", "/v1/nothing", "/i/x", "/metrics", "/assets/live.js"] {
        let answer = api.get(path).await;
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(answer.header("referrer-policy"), "no-referrer", "{path}");
        let policy = answer.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'"), "{path}: {policy}");
        assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{path}: {policy}");
        if !path.starts_with("/assets") {
            assert_eq!(answer.header("cache-control"), "no-store", "{path}");
        }
    }
}

/// The routes that the outer contract names for what exists today.
const CONTRACT: [(&str, &str); 28] = [
    ("post", "/v1/invoices"),
    ("get", "/v1/invoices"),
    ("get", "/v1/invoices/{id}"),
    ("post", "/v1/invoices/{id}/cancel"),
    ("get", "/v1/invoices/{id}/evidence"),
    ("get", "/v1/payments"),
    ("post", "/v1/payments/{id}/assign"),
    ("get", "/v1/events"),
    ("get", "/v1/events/stream"),
    ("post", "/v1/webhook-endpoints"),
    ("get", "/v1/webhook-endpoints"),
    ("patch", "/v1/webhook-endpoints/{id}"),
    ("delete", "/v1/webhook-endpoints/{id}"),
    ("post", "/v1/webhook-endpoints/{id}/rotate-secret"),
    ("get", "/v1/deliveries"),
    ("post", "/v1/deliveries/{id}/retry"),
    ("get", "/v1/dead-letters"),
    ("post", "/v1/dead-letters/replay"),
    ("post", "/v1/chains/{id}/thaw"),
    ("get", "/v1/rpc/providers"),
    ("get", "/v1/chains"),
    ("get", "/v1/evidence-keys"),
    ("get", "/healthz"),
    ("get", "/readyz"),
    ("get", "/metrics"),
    ("get", "/openapi.json"),
    ("get", "/v1/webhook-endpoints/{id}"),
    ("get", "/v1/deliveries/{id}"),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_document_and_the_routes_agree() {
    let api = Api::open(Auth::None).await;
    let document = api.get("/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let documented: BTreeSet<(String, String)> =
        operations().into_iter().map(|(method, path, _)| (method.as_str().to_lowercase(), path)).collect();
    let contract: BTreeSet<(String, String)> =
        CONTRACT.iter().map(|(method, path)| ((*method).to_owned(), (*path).to_owned())).collect();
    assert_eq!(documented, contract);
    for (method, path) in &documented {
        let operation = &document["paths"][path][method];
        assert!(operation["summary"].as_str().is_some_and(|text| text.len() > 10), "{method} {path}");
        assert!(operation["operationId"].is_string(), "{method} {path}");
        assert!(operation["responses"].as_object().unwrap().keys().any(|code| code.starts_with('2')));
        if path == "/v1/events/stream" {
            continue;
        }
        let answer = api
            .call(
                method.to_uppercase().parse().unwrap(),
                &filled(path),
                &[("content-type", "application/json")],
                "{}",
            )
            .await;
        let no_route = answer.status == 404 && answer.text().contains("no such route");
        assert!(!no_route && answer.status != 405, "{method} {path} is documented and not there");
        let documented = operation["responses"].get(answer.status.as_str()).is_some();
        assert!(documented, "{method} {path} answered {}, which is not documented", answer.status);
    }
    // Every reference leads somewhere.
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#/").skip(1) {
        let pointer = format!("/{}", reference.split('"').next().unwrap());
        assert!(document.pointer(&pointer).is_some(), "{pointer} leads nowhere");
    }
}
