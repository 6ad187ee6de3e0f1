//! From an invoice made over HTTP to its quittance, seen from outside: lists, streams, pages and metrics.

use std::time::Duration;

use app::config::Auth;
use axum::body::Body;
use domain::time::Clock;
use futures::StreamExt;
use http::{Method, Request};
use outside::clock::SystemClock;
use outside::guard::deadline::within;
use serde_json::{Value, json};
use sim::receiver::Behaviour;

use crate::api_calls::{Api, invoice};
use crate::world::recipient;

const PATIENCE: Duration = Duration::from_secs(30);

/// Asks until the answer pleases.
async fn until(api: &Api, path: &str, pleases: impl Fn(&Value) -> bool) -> Value {
    let clock = SystemClock::new();
    let asking = async {
        loop {
            let json = api.get(path).await.json();
            if pleases(&json) {
                return json;
            }
            clock.sleep(Duration::from_millis(10)).await;
        }
    };
    within(&clock, PATIENCE, asking).await.unwrap_or_else(|_| panic!("{path} never became as expected"))
}

/// Reads frames of a stream until one has a field `event`; answers its id, event and data.
async fn next_event(stream: &mut (impl StreamExt<Item = String> + Unpin)) -> (String, String, Value) {
    let clock = SystemClock::new();
    let reading = async {
        let mut text = String::new();
        loop {
            text += &stream.next().await.expect("the stream ended");
            while let Some((frame, rest)) = text.split_once("\n\n").map(|(f, r)| (f.to_owned(), r.to_owned()))
            {
                text = rest;
                let field = |name: &str| {
                    frame
                        .lines()
                        .find_map(|line| line.strip_prefix(name))
                        .map(|value| value.trim_start().to_owned())
                };
                if let (Some(id), Some(event), Some(data)) = (field("id:"), field("event:"), field("data:")) {
                    return (id, event, serde_json::from_str(&data).unwrap());
                }
            }
        }
    };
    within(&clock, PATIENCE, reading).await.expect("no event came")
}

async fn follow(api: &Api, path: &str, last: Option<&str>) -> impl StreamExt<Item = String> + Unpin {
    let mut request = Request::builder().uri(path);
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let response = api.send(request.body(Body::empty()).unwrap()).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    Box::pin(
        response
            .into_body()
            .into_data_stream()
            .map(|chunk| String::from_utf8(chunk.unwrap().to_vec()).unwrap()),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invoice_is_paid_told_and_proven() {
    let api = Api::open(Auth::None).await;
    let merchant = api.world.merchant.url("/hook");
    let endpoint = api.post("/v1/webhook-endpoints", &json!({"url": merchant})).await.json();
    api.world.merchant.trust("/hook", endpoint["secret"].as_str().unwrap()).unwrap();
    let mut live = follow(&api, "/v1/events/stream", None).await;
    let made = api.post("/v1/invoices", &invoice(1)).await.json();
    let path = format!("/v1/invoices/{}", made["id"].as_str().unwrap());

    api.world.pay(recipient(1), 2_500_000);
    api.world.chain.mine_n(4);
    let settled = until(&api, &path, |invoice| invoice["status"] == "settled").await;
    assert_eq!(settled["amount_paid"], "2500000");
    let tx = settled["tx_hash"].as_str().unwrap();
    assert_eq!(settled["settlement_key"], format!("{}:{tx}", made["id"].as_str().unwrap()));
    assert_eq!(settled["payments"][0]["evidence_level"], "VERIFIED");

    // The stream told it live; and from its first id it can be followed again.
    let (first_id, event, data) = next_event(&mut live).await;
    assert_eq!((event.as_str(), &data["sequence"]), ("invoice.detected", &json!(1)));
    let (_, event, data) = next_event(&mut live).await;
    assert_eq!(event, "invoice.settled");
    let mut resumed = follow(&api, "/v1/events/stream", Some(&first_id)).await;
    assert_eq!(next_event(&mut resumed).await.2, data, "nothing is lost, nothing is repeated");
    let log = api.get("/v1/events").await.json();
    assert_eq!(log["data"][1], data, "the log holds the same bytes");
    assert_eq!(api.get(&format!("/v1/events?after={first_id}&limit=1")).await.json()["data"][0], data);
    let end = api.get("/v1/events?after=latest").await.json();
    assert_eq!((&end["data"], &end["cursor"]), (&json!([]), &log["cursor"]));

    // The merchant was told, and the list says so.
    let delivered =
        until(&api, "/v1/deliveries?status=delivered", |page| page["data"].as_array().unwrap().len() >= 2)
            .await;
    let delivery = format!("/v1/deliveries/{}", delivered["data"][0]["id"].as_str().unwrap());
    assert_eq!(api.get(&delivery).await.json()["attempt_log"][0]["outcome"], "delivered");
    let retry = api.post(&format!("{delivery}/retry"), &json!({})).await;
    assert_eq!(retry.problem().1, "not_a_dead_letter");

    // The quittance holds, and is signed by the key that is told.
    let bundle = api.get(&format!("{path}/evidence")).await;
    assert_eq!(bundle.status, 200);
    let key = api.get("/v1/evidence-keys").await.json()["data"][0]["key"].as_str().unwrap().parse().unwrap();
    let checked = app::features::evidence::check(&bundle.body, &[], &[key]).unwrap();
    assert!(checked.key_trusted && checked.is_trusted());

    let payments = api.get("/v1/payments?matching=matched").await.json();
    assert_eq!(payments["data"][0]["tx_hash"], tx);
    let assign = format!("/v1/payments/{}/assign", payments["data"][0]["id"].as_str().unwrap());
    let taken = api.post(&assign, &json!({"invoice_id": made["id"]})).await;
    assert_eq!(taken.problem().1, "payment_taken");

    let chains = api.get("/v1/chains").await.json();
    assert!(chains["data"][0]["last_processed_block"].as_u64().unwrap() >= 5, "{chains}");
    assert_eq!(chains["data"][0]["frozen"], false);
    let providers = api.get("/v1/rpc/providers").await.json();
    assert_eq!(providers["data"].as_array().unwrap().len(), 3);
    assert!(providers["data"][0]["latency_ms"]["p50"].is_u64(), "{providers}");
    let ready = api.get("/readyz").await;
    assert_eq!(ready.status, 200, "{}", ready.text());
    assert_eq!(api.get("/healthz").await.json()["status"], "ok");
    the_metrics_say_so(&api).await;
    the_pages_say_so(&api, &made).await;
}

async fn the_metrics_say_so(api: &Api) {
    let answer = api.get("/metrics").await;
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let text = answer.text();
    for (name, kind) in [
        ("rpc_quorum_failure_rate", "gauge"),
        ("rpc_provider_latency_ms", "gauge"),
        ("duplicate_events_dropped_total", "counter"),
        ("webhook_delivery_success_rate", "gauge"),
        ("webhook_dlq_total", "counter"),
        ("invoice_verification_latency_p95", "gauge"),
    ] {
        let help = text
            .lines()
            .find(|line| line.starts_with(&format!("# HELP {name} ")))
            .unwrap_or_else(|| panic!("{name} has no HELP"));
        for word in ["Numerator", "Denominator", "Window"] {
            assert!(help.contains(word), "{help}");
        }
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
        let sample = text
            .lines()
            .any(|line| line.starts_with(&format!("{name} ")) || line.starts_with(&format!("{name}{{")));
        assert!(sample, "{name} has no sample");
    }
    for needle in [
        "quittance_rpc_quorum_rounds_total{chain=\"eip155:31337\",outcome=\"agreed\"}",
        "quittance_invoices{status=\"settled\"} 1",
        "quittance_webhook_attempts_total{outcome=\"delivered\"} 2",
        "quittance_chain_height{chain=\"eip155:31337\",kind=\"processed\"}",
        "quittance_db_commits_total",
        "quittance_http_requests_total{method=\"POST\",route=\"/v1/invoices\",status=\"201\"} 1",
        "quittance_rpc_provider_state{",
    ] {
        assert!(text.contains(needle), "{needle} is missing in\n{text}");
    }
    for id in ["inv_", "evt_", "whe_", "0x"] {
        assert!(!text.contains(id), "an id is in a label: {id}");
    }
}

async fn the_pages_say_so(api: &Api, made: &Value) {
    let id = made["id"].as_str().unwrap();
    let overview = api.get("/").await;
    assert_eq!(overview.header("content-type"), "text/html; charset=utf-8");
    assert!(overview.text().contains(id) && overview.text().contains("2.5 DUSD"), "{}", overview.text());
    assert!(overview.text().contains("Nothing waits for a person."));
    let checkout = api.get(&format!("/i/{id}")).await;
    assert!(checkout.text().contains("Paid"), "{}", checkout.text());
    assert_eq!(checkout.header("x-robots-tag"), "noindex, nofollow");
    assert!(api.get(&format!("/invoices/{id}")).await.text().contains("invoice.settled"));
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_words_are_shown_as_words() {
    let api = Api::open(Auth::None).await;
    let attacks = [
        "<script>pwned()</script>",
        "\"><img src=x onerror=pwned()>",
        "javascript:pwned()",
        "</style><svg/onload=pwned()>",
        "{{7*7}}",
    ];
    for (number, attack) in (1..).zip(attacks) {
        let mut body = invoice(number);
        body["reference"] = json!(attack);
        body["metadata"] = json!({attack: attack});
        let made = api.post("/v1/invoices", &body).await;
        assert_eq!(made.status, 201, "{}", made.text());
        let id = made.json()["id"].as_str().unwrap().to_owned();
        for path in ["/".to_owned(), format!("/invoices/{id}"), format!("/i/{id}")] {
            let page = api.get(&path).await.text();
            for raw in ["<script>pwned", "<img src=x", "<svg/onload"] {
                assert!(!page.contains(raw), "{path} holds {raw}");
            }
            assert!(!page.contains("href=\"javascript:"), "{path}");
            // No inline scripts, styles or handlers, which the policy forbids anyway.
            assert_eq!(page.matches("<script").count(), 1, "{path}");
            assert!(!page.contains(" style=") && !page.contains("<style"), "{path}");
        }
        let checkout = api.get(&format!("/i/{id}")).await.text();
        assert!(!checkout.contains("pwned"), "the payer sees no reference and no metadata");
        assert!(checkout.contains("<svg class=\"qr\"") && checkout.contains("Send exactly"), "{checkout}");
    }
    for path in
        ["/i/inv_00000000000000000000000000000000", "/i/nonsense", "/i/evt_00000000000000000000000000000000"]
    {
        let answer = api.get(path).await;
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.text(), api.get("/i/x").await.text(), "one page for everything that is not there");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_and_replayed() {
    let api = Api::open(Auth::None).await;
    api.world.merchant.behave("/gone", Behaviour::Gone);
    let url = api.world.merchant.url("/gone");
    let made = api
        .post("/v1/webhook-endpoints", &json!({"url": url, "event_types": ["invoice.canceled"]}))
        .await
        .json();
    let endpoint = format!("/v1/webhook-endpoints/{}", made["id"].as_str().unwrap());
    let invoice = api.post("/v1/invoices", &invoice(1)).await.json();
    api.post(&format!("/v1/invoices/{}/cancel", invoice["id"].as_str().unwrap()), &json!({})).await;
    let dead = until(&api, "/v1/dead-letters", |page| !page["data"].as_array().unwrap().is_empty()).await;
    assert_eq!(dead["data"][0]["dead_reason"], "gone", "{dead}");
    assert_eq!(api.get(&endpoint).await.json()["enabled"], false);
    let retry = format!("/v1/deliveries/{}/retry", dead["data"][0]["id"].as_str().unwrap());
    assert_eq!(api.post(&retry, &json!({})).await.problem().1, "endpoint_disabled");
    let skipped = api.post("/v1/dead-letters/replay", &json!({})).await.json();
    assert_eq!((&skipped["replayed"], skipped["skipped"].as_array().unwrap().len()), (&json!(0), 1));
    let change = json!({"url": api.world.merchant.url("/hook"), "enabled": true}).to_string();
    let changed = api.call(Method::PATCH, &endpoint, &[("content-type", "application/json")], change).await;
    assert_eq!(changed.status, 200, "{}", changed.text());
    api.world.merchant.trust("/hook", made["secret"].as_str().unwrap()).unwrap();
    let dry = api.post("/v1/dead-letters/replay", &json!({"dry_run": true})).await.json();
    assert_eq!((&dry["dry_run"], &dry["replayed"]), (&json!(true), &json!(1)), "{dry}");
    assert_eq!(
        api.get("/v1/dead-letters").await.json()["data"].as_array().unwrap().len(),
        1,
        "a dry run does nothing"
    );
    let done = api.post("/v1/dead-letters/replay", &json!({"since": "2020-01-01T00:00:00Z"})).await.json();
    assert_eq!(done["replayed"], 1);
    let delivered =
        until(&api, "/v1/deliveries?status=delivered", |page| !page["data"].as_array().unwrap().is_empty())
            .await;
    assert_eq!(delivered["data"][0]["replayed"], true);
    assert_eq!(delivered["data"][0]["event_id"], dead["data"][0]["event_id"]);
    assert_eq!(api.get("/v1/dead-letters").await.json()["data"], json!([]));
    let text = api.get("/metrics").await.text();
    assert!(text.contains("\nwebhook_dlq_total 1\n"), "{text}");
}
