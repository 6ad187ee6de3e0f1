//! The client against servers and resolvers that mean it harm.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::http::header::{AUTHORIZATION, HOST, HeaderValue, LOCATION};
use ::http::{Method, StatusCode};
use bytes::Bytes;
use domain::time::Clock;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use outside::clock::SystemClock;
use outside::http::{
    AddressPolicy, BodyEnd, Client, ClientOptions, Http, HttpError, HttpErrorKind, Phase, ProtocolFault,
    Request, Resolve, ResolveError, Response, Sent, TargetRefused,
};
use url::Url;

use crate::hostile::{Hostile, Step, say};
use crate::manual::ManualClock;

/// Long enough for a loaded machine to answer, short enough to wait for.
const PATIENCE: Duration = Duration::from_millis(400);

fn loopback_policy() -> AddressPolicy {
    AddressPolicy {
        allow_networks: vec!["127.0.0.1/32".parse().unwrap()],
        allow_http: true,
        ..AddressPolicy::public()
    }
}

fn client() -> Client {
    Client::new(ClientOptions::new(loopback_policy()), Arc::new(SystemClock::new())).unwrap()
}

fn resolving(resolver: Resolver) -> Client {
    let options = ClientOptions { resolve_limit: PATIENCE, ..ClientOptions::new(loopback_policy()) };
    Client::with_resolver(options, Arc::new(SystemClock::new()), Arc::new(resolver)).unwrap()
}

async fn ask(client: &Client, url: Url) -> Result<Response, HttpError> {
    client.send(Request { deadline: PATIENCE, ..Request::post(url, "body") }).await
}

fn kind(outcome: Result<Response, HttpError>) -> (HttpErrorKind, Sent) {
    let error = outcome.unwrap_err();
    assert!(!error.to_string().contains("127."), "{error}");
    (error.kind, error.sent)
}

async fn eventually(what: impl Fn() -> bool) {
    let clock = SystemClock::new();
    for _ in 0..500 {
        if what() {
            return;
        }
        clock.sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not come to pass in five seconds");
}

// What is sent.

/// This test runs beside the workers, so the driver of a new connection is mostly polled before its exchange has begun.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_connection_may_be_read_at_once() {
    let answer = say("HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
    let server = Hostile::serve([("/", vec![answer])]).await;
    for _ in 0..500 {
        assert_eq!(ask(&client(), server.url("/")).await.unwrap().status, StatusCode::NO_CONTENT);
    }
}

#[tokio::test]
async fn sends_the_request_as_it_is_and_keeps_the_connection() {
    let server = Hostile::serve([(
        "/a%20b?c=d",
        vec![say("HTTP/1.1 201 Created\r\nx-a: b\r\ncontent-length: 2\r\n\r\nhi")],
    )])
    .await;
    let client = client();
    for turn in 0..20 {
        let mut request = Request::post(server.url("/a%20b?c=d#fragment"), "{\"n\": 1.0}");
        request.headers.insert("webhook-id", HeaderValue::from_static("evt_1"));
        let answer = client.send(request).await.unwrap();
        assert_eq!(
            (answer.status, &answer.body[..], answer.ended),
            (StatusCode::CREATED, &b"hi"[..], BodyEnd::Whole)
        );
        assert_eq!(answer.headers["x-a"], "b");
        assert_eq!(answer.peer, server.address);
        assert_eq!(answer.timings.reused, turn > 0);
        SystemClock::new().sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(server.connections(), 1);
    let request = server.requests().pop().unwrap();
    assert!(request.starts_with("POST /a%20b?c=d HTTP/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("host: {}\r\n", server.address)), "{request}");
    assert!(
        request.contains("webhook-id: evt_1\r\n") && request.contains("user-agent: Quittance/"),
        "{request}"
    );
    assert!(request.ends_with("\r\n\r\n{\"n\": 1.0}"), "{request}");
    assert!(!request.contains("accept-encoding") && !request.contains("fragment"), "{request}");
}

#[tokio::test]
async fn headers_that_frame_the_message_are_the_clients_own() {
    let server = Hostile::serve([]).await;
    let client = client();
    for name in
        ["host", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade", "expect"]
    {
        let mut request = Request::get(server.url("/"));
        request.headers.insert(name, HeaderValue::from_static("1"));
        assert_eq!(kind(client.send(request).await), (HttpErrorKind::InvalidRequest, Sent::Not), "{name}");
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn credentials_of_an_operators_url_go_into_the_header() {
    let server = Hostile::serve([]).await;
    let client =
        Client::new(ClientOptions::new(AddressPolicy::unrestricted()), Arc::new(SystemClock::new())).unwrap();
    let mut url = server.url("/");
    url.set_username("us er").unwrap();
    url.set_password(Some("p:a+ss")).unwrap();
    client.send(Request::get(url.clone())).await.unwrap();
    assert!(
        server.requests()[0].contains("authorization: Basic dXMgZXI6cDphK3Nz\r\n"),
        "{}",
        server.requests()[0]
    );
    let refused = client_of_strangers().send(Request::get(url)).await;
    assert_eq!(kind(refused), (HttpErrorKind::Refused(TargetRefused::UserInfo), Sent::Not));
}

fn client_of_strangers() -> Client {
    client()
}

#[test]
fn nothing_secret_is_in_the_debug_texts() {
    let mut request = Request::post("https://m.example/v3/KEY1?k=KEY2".parse().unwrap(), "KEY3");
    request.headers.insert(AUTHORIZATION, HeaderValue::from_static("KEY4"));
    assert!(!format!("{request:?}").contains("KEY"), "{request:?}");
}

// Silence and slowness.

#[tokio::test]
async fn one_deadline_covers_everything() {
    let drip = |head: &str, text: &str| {
        vec![say(head), Step::Drip(text.as_bytes().to_vec(), Duration::from_millis(5))]
    };
    let server = Hostile::serve([
        ("/silence", vec![Step::Silence]),
        ("/slow-head", drip("", "HTTP/1.1 200 OK\r\nx: y\r\nz")),
        ("/slow-headers", drip("HTTP/1.1 200 OK\r\n", "a: b\r\n")),
        ("/1xx-drip", drip("", "HTTP/1.1 103 Early Hints\r\n\r\n")),
    ])
    .await;
    let clock = SystemClock::new();
    for path in ["/silence", "/slow-head", "/slow-headers", "/1xx-drip"] {
        let began = clock.monotonic();
        let outcome = ask(&client(), server.url(path)).await;
        assert_eq!(kind(outcome), (HttpErrorKind::Timeout(Phase::Head), Sent::Maybe), "{path}");
        let took = clock.monotonic() - began;
        assert!(took >= PATIENCE && took < PATIENCE * 3, "{path}: {took:?}");
    }
    eventually(|| server.seen.closed_by_peer.load(Ordering::SeqCst) >= 1).await;
}

#[tokio::test]
async fn a_slow_body_ends_at_the_deadline_and_the_status_counts() {
    let chunk = b"1\r\nx\r\n".to_vec();
    let server = Hostile::serve([
        (
            "/length",
            vec![
                say("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n"),
                Step::Drip(b"x".to_vec(), Duration::from_millis(5)),
            ],
        ),
        (
            "/chunks",
            vec![
                say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
                Step::Drip(chunk, Duration::from_millis(2)),
            ],
        ),
        ("/stall", vec![say("HTTP/1.1 500 No\r\ncontent-length: 99\r\n\r\nabc"), Step::Silence]),
    ])
    .await;
    for (path, status) in [("/length", 200), ("/chunks", 200), ("/stall", 500)] {
        let answer = ask(&client(), server.url(path)).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.ended), (status, BodyEnd::OutOfTime), "{path}");
        assert!(answer.truncated() && !answer.body.is_empty() && answer.body.len() < 99, "{path}");
        assert!(answer.timings.total >= PATIENCE, "{path}");
    }
}

// Too much.

#[tokio::test]
async fn a_body_is_read_up_to_its_limit_and_the_connection_dropped() {
    let server = Hostile::serve([
        ("/endless", vec![say("HTTP/1.1 200 OK\r\n\r\n"), Step::Flood(vec![b'x'; 4096])]),
        (
            "/chunked",
            vec![
                say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
                Step::Flood(b"1\r\nx\r\n".repeat(500)),
            ],
        ),
        (
            "/huge",
            vec![
                say("HTTP/1.1 200 OK\r\ncontent-length: 1000000000000000000\r\n\r\n"),
                Step::Flood(vec![b'x'; 4096]),
            ],
        ),
    ])
    .await;
    let client = client();
    for path in ["/endless", "/chunked", "/huge"] {
        let mut request = Request::get(server.url(path));
        request.max_response_bytes = 10_000;
        request.deadline = Duration::from_secs(10);
        let answer = client.send(request).await.unwrap();
        assert_eq!(
            (answer.status.as_u16(), answer.body.len(), answer.ended),
            (200, 10_000, BodyEnd::CutAtLimit),
            "{path}"
        );
    }
    eventually(|| server.seen.closed_by_peer.load(Ordering::SeqCst) == 3).await;
    let written = server.seen.written.load(Ordering::SeqCst);
    assert!(written < 64 * 1024 * 1024, "sockets buffer some, but reading ended: {written}");
    assert_eq!(server.connections(), 3, "a connection with a cut body is not used again");
}

#[tokio::test]
async fn a_body_of_exactly_the_limit_is_whole_and_nothing_is_read_for_a_limit_of_zero() {
    let server =
        Hostile::serve([("/ten", vec![say("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123456789")])])
            .await;
    let client = client();
    for (limit, length, ended) in
        [(10, 10, BodyEnd::Whole), (9, 9, BodyEnd::CutAtLimit), (0, 0, BodyEnd::CutAtLimit)]
    {
        let request = Request { max_response_bytes: limit, ..Request::get(server.url("/ten")) };
        let answer = client.send(request).await.unwrap();
        assert_eq!((answer.body.len(), answer.ended), (length, ended), "{limit}");
    }
}

#[tokio::test]
async fn heads_are_bounded_in_bytes_and_fields() {
    let fields = |count: usize| (0..count).fold(String::new(), |all, n| all + &format!("x-{n}: y\r\n"));
    let with = |fields: &str| vec![say(&format!("HTTP/1.1 200 OK\r\n{fields}content-length: 0\r\n\r\n"))];
    let server = Hostile::serve([
        ("/99", with(&fields(99))),
        ("/101", with(&fields(101))),
        ("/10000", with(&fields(10_000))),
        ("/10MB", vec![say("HTTP/1.1 200 OK\r\nx: "), Step::Flood(vec![b'y'; 65_536])]),
        ("/1xx", vec![Step::Flood(b"HTTP/1.1 100 Continue\r\n\r\n".repeat(100))]),
        ("/reason", vec![say("HTTP/1.1 200 "), Step::Flood(vec![b'y'; 65_536])]),
    ])
    .await;
    let client = client();
    assert_eq!(ask(&client, server.url("/99")).await.unwrap().headers.len(), 100);
    for path in ["/101", "/10000", "/10MB", "/1xx", "/reason"] {
        let request = Request { deadline: Duration::from_secs(10), ..Request::get(server.url(path)) };
        let outcome = client.send(request).await;
        assert_eq!(kind(outcome), (HttpErrorKind::Protocol(ProtocolFault::TooLarge), Sent::Maybe), "{path}");
    }
}

#[tokio::test]
async fn trailers_are_bounded_and_the_status_counts() {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x\r\n\r\n2\r\nhi\r\n0\r\n";
    let server = Hostile::serve([
        ("/flood", vec![say(head), Step::Flood(b"x: y\r\n".repeat(1000))]),
        ("/few", vec![say(head), say("x: y\r\n\r\n")]),
    ])
    .await;
    let client = client();
    let flooded = client
        .send(Request { deadline: Duration::from_secs(10), ..Request::get(server.url("/flood")) })
        .await
        .unwrap();
    assert_eq!((flooded.status.as_u16(), &flooded.body[..]), (200, &b"hi"[..]));
    assert!(matches!(flooded.ended, BodyEnd::Broken | BodyEnd::CutAtLimit), "{:?}", flooded.ended);
    let few = ask(&client, server.url("/few")).await.unwrap();
    assert_eq!((&few.body[..], few.ended), (&b"hi"[..], BodyEnd::Whole));
    assert!(!few.headers.contains_key("x"), "a trailer does not become a header");
}

// Broken answers.

#[tokio::test]
async fn once_the_status_is_there_nothing_takes_it_back() {
    let server = Hostile::serve([
        ("/reset", vec![say("HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\nab"), Step::Reset]),
        ("/close", vec![say("HTTP/1.1 202 OK\r\ncontent-length: 99\r\n\r\nab"), Step::Close]),
        (
            "/chunk",
            vec![
                say("HTTP/1.1 410 Gone\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\nzz\r\n"),
                Step::Close,
            ],
        ),
        ("/e18", vec![say("HTTP/1.1 200 OK\r\ncontent-length: 1000000000000000000\r\n\r\nab"), Step::Close]),
    ])
    .await;
    for (path, status) in [("/reset", 200), ("/close", 202), ("/chunk", 410), ("/e18", 200)] {
        let answer = ask(&client(), server.url(path)).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.ended), (status, BodyEnd::Broken), "{path}");
    }
}

#[tokio::test]
async fn an_end_before_the_status_is_a_reset_that_may_have_had_effect() {
    let server = Hostile::serve([
        ("/reset", vec![Step::Reset]),
        ("/close", vec![Step::Close]),
        ("/half", vec![say("HTTP/1.1 200 O"), Step::Close]),
    ])
    .await;
    for path in ["/reset", "/close", "/half"] {
        assert_eq!(
            kind(ask(&client(), server.url(path)).await),
            (HttpErrorKind::Reset, Sent::Maybe),
            "{path}"
        );
    }
    assert_eq!(server.requests().len(), 3, "each was written once");
}

#[tokio::test]
async fn what_is_not_http_is_malformed() {
    let banners = [
        "SSH-2.0-OpenSSH_9.6\r\n",
        "220 mail.example ESMTP\r\n\r\n",
        "hello",
        "-ERR unknown command\r\n",
        "HTTP/0.9 200 OK\r\n\r\n",
        "HTTP/1.1 099 Low\r\n\r\n",
        "HTTP/1.1 1000 High\r\n\r\n",
        "HTTP/1.1 0 Zero\r\n\r\n",
        "HTTP/1.1 abc\r\n\r\n",
        "HTTP/1.1 -20 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\nx y: z\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "\0\0\0\0\0\0\0\0\r\n\r\n",
    ];
    for banner in banners {
        let server = Hostile::serve([("/", vec![say(banner), Step::Close])]).await;
        let outcome = kind(ask(&client(), server.url("/")).await);
        assert_eq!(outcome, (HttpErrorKind::Protocol(ProtocolFault::Malformed), Sent::Maybe), "{banner:?}");
    }
}

#[tokio::test]
async fn unusual_statuses_are_answers() {
    for status in [101u16, 204, 205, 299, 304, 418, 599, 600, 999] {
        let text = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
        let server = Hostile::serve([("/", vec![say(&text), Step::Close])]).await;
        let answer = ask(&client(), server.url("/")).await;
        assert_eq!(answer.map(|answer| answer.status.as_u16()).map_err(|error| error.kind), Ok(status));
    }
}

#[tokio::test]
async fn redirects_are_answers_and_are_not_followed() {
    let inner = Hostile::serve([]).await;
    for status in [301, 302, 303, 307, 308] {
        let text = format!(
            "HTTP/1.1 {status} Moved\r\nlocation: {}\r\ncontent-length: 0\r\n\r\n",
            inner.url("/secret")
        );
        let server = Hostile::serve([("/", vec![say(&text)])]).await;
        let answer = ask(&client(), server.url("/")).await.unwrap();
        assert_eq!(answer.status.as_u16(), status);
        assert!(answer.headers.contains_key(LOCATION));
    }
    assert_eq!(inner.connections(), 0);
}

#[tokio::test]
async fn a_labelled_compression_is_not_undone() {
    let zeros =
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x4b\x4c\x4a\x06\x00\xc2\x41\x24\x35\x03\x00\x00\x00";
    let mut answer = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 23\r\n\r\n".to_vec();
    answer.extend(zeros);
    let server = Hostile::serve([("/", vec![Step::Write(answer)])]).await;
    assert_eq!(&ask(&client(), server.url("/")).await.unwrap().body[..], zeros);
}

// Kept connections.

#[tokio::test]
async fn an_answer_sent_ahead_does_not_become_the_next_ones() {
    let ahead = "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged";
    let server = Hostile::serve([
        ("/ahead", vec![say(ahead)]),
        ("/next", vec![say("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ntrue")]),
    ])
    .await;
    let client = client();
    for _ in 0..20 {
        assert_eq!(ask(&client, server.url("/ahead")).await.unwrap().status.as_u16(), 204);
        if let Ok(answer) = ask(&client, server.url("/next")).await {
            assert_eq!(&answer.body[..], b"true");
        }
    }
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_is_replaced() {
    let server =
        Hostile::serve([("/", vec![say("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), Step::Close])]).await;
    let client = client();
    for _ in 0..50 {
        let answer = ask(&client, server.url("/")).await;
        // The server's closing may cross the request on the way; that attempt is over then.
        assert!(answer.is_ok() || kind(answer) == (HttpErrorKind::Reset, Sent::Maybe));
    }
}

#[tokio::test]
async fn a_request_that_was_written_is_not_written_again() {
    let server = Hostile::serve([("/drop", vec![Step::Close])]).await;
    let client = client();
    for _ in 0..20 {
        ask(&client, server.url("/keep")).await.unwrap();
        assert_eq!(kind(ask(&client, server.url("/drop")).await), (HttpErrorKind::Reset, Sent::Maybe));
    }
    let dropped = server.requests().iter().filter(|request| request.contains("/drop")).count();
    assert_eq!(dropped, 20);
}

#[tokio::test]
async fn an_answer_before_the_request_was_taken_counts_and_the_connection_does_not() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: Url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let accepted = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&accepted);
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            let mut some = [0; 512];
            stream.read_exact(&mut some).await.unwrap();
            stream.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            kept.push(stream);
        }
    });
    let client = client();
    for _ in 0..2 {
        let body = Bytes::from(vec![b'x'; 32 * 1024 * 1024]);
        let request = Request { deadline: Duration::from_secs(10), ..Request::post(url.clone(), body) };
        assert_eq!(client.send(request).await.unwrap().status.as_u16(), 413);
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_server_that_hangs_up_at_once_is_connected_to_once_per_request() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: Url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let accepted = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&accepted);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            stream.set_zero_linger().unwrap();
        }
    });
    let client = client();
    for turn in 1..=50 {
        assert_eq!(ask(&client, url.clone()).await.unwrap_err().kind, HttpErrorKind::Reset);
        assert_eq!(accepted.load(Ordering::SeqCst), turn);
    }
}

#[tokio::test]
async fn a_body_that_nobody_takes_is_let_go_with_its_answer() {
    struct Load(Vec<u8>, Arc<AtomicU64>);
    impl AsRef<[u8]> for Load {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Load {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: Url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        std::future::pending::<()>().await;
    });
    let gone = Arc::new(AtomicU64::new(0));
    let body = Bytes::from_owner(Load(vec![b'x'; 32 * 1024 * 1024], Arc::clone(&gone)));
    let client = client();
    let answer =
        client.send(Request { deadline: Duration::from_secs(10), ..Request::post(url, body) }).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.ended), (413, BodyEnd::Whole));
    eventually(|| gone.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_receiver_that_takes_nothing_runs_into_the_deadline() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: Url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let body = Bytes::from(vec![b'x'; 32 * 1024 * 1024]);
    let request = Request { deadline: PATIENCE, ..Request::post(url, body) };
    assert_eq!(kind(client().send(request).await), (HttpErrorKind::Timeout(Phase::Head), Sent::Maybe));
}

#[tokio::test]
async fn kept_connections_grow_old() {
    let server = Hostile::serve([]).await;
    let clock = ManualClock::default();
    let options = ClientOptions {
        idle_for: Duration::from_secs(30),
        max_age: Duration::from_secs(100),
        ..ClientOptions::new(loopback_policy())
    };
    let client = Client::new(options, Arc::new(clock.clone())).unwrap();
    let mut reused = Vec::new();
    for pause in [0, 29, 29, 29, 29, 30, 0] {
        clock.advance(Duration::from_secs(pause));
        let answer = client.send(Request::get(server.url("/"))).await.unwrap();
        reused.push(answer.timings.reused);
        // The connection is put back a moment after its answer.
        SystemClock::new().sleep(Duration::from_millis(20)).await;
    }
    let expected = [false, true, true, true, false, false, true];
    assert_eq!(reused, expected, "the fifth found it too old, the sixth idle for too long");
}

#[tokio::test]
async fn a_dropped_request_closes_its_connection() {
    let server = Hostile::serve([("/", vec![Step::Silence])]).await;
    let client = client();
    let request = tokio::spawn({
        let url = server.url("/");
        async move { client.send(Request::get(url)).await.map(|answer| answer.status) }
    });
    eventually(|| server.requests().len() == 1).await;
    request.abort();
    eventually(|| server.seen.closed_by_peer.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn many_at_once_get_their_own_answers() {
    let server = Hostile::serve([]).await;
    let client = client();
    let all = join_all((0..200).map(|n| ask(&client, server.url(&format!("/{n}"))))).await;
    assert!(all.iter().all(|answer| answer.as_ref().is_ok_and(|answer| answer.status == StatusCode::OK)));
    let mut paths: Vec<_> =
        server.requests().iter().map(|request| request.split(' ').nth(1).unwrap().to_owned()).collect();
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), 200);
}

// Names and addresses.

/// Answers each lookup with the next of these, and the last one for ever.
struct Resolver {
    answers: Mutex<VecDeque<Result<Vec<IpAddr>, ResolveError>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Resolver {
    fn answering<const N: usize>(answers: [&[&str]; N]) -> Self {
        let answers = answers.iter().map(|list| Ok(list.iter().map(|ip| ip.parse().unwrap()).collect()));
        Self { answers: Mutex::new(answers.collect()), asked: Arc::default() }
    }

    fn failing(error: ResolveError) -> Self {
        Self { answers: Mutex::new([Err(error)].into()), asked: Arc::default() }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, host: String) -> BoxFuture<'static, Result<Vec<IpAddr>, ResolveError>> {
        self.asked.lock().unwrap().push(host);
        let mut answers = self.answers.lock().unwrap();
        let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
        async move {
            match answer {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        }
        .boxed()
    }
}

fn named(server: &Hostile) -> Url {
    format!("http://merchant.example:{}/", server.address.port()).parse().unwrap()
}

const REFUSED: (HttpErrorKind, Sent) = (HttpErrorKind::Refused(TargetRefused::Address), Sent::Not);

#[tokio::test]
async fn one_bad_address_rejects_the_answer() {
    let server = Hostile::serve([]).await;
    for answer in [
        &["127.0.0.1", "127.0.0.2"][..],
        &["127.0.0.1", "::1"],
        &["169.254.169.254", "127.0.0.1"],
        &["127.0.0.1", "::ffff:127.0.0.1"],
        &["127.0.0.1", "fd00:ec2::254"],
        &["10.0.0.1"],
        &["0.0.0.0"],
        &["::"],
        &["64:ff9b::7f00:1"],
    ] {
        let client = resolving(Resolver::answering([answer]));
        assert_eq!(kind(ask(&client, named(&server)).await), REFUSED, "{answer:?}");
    }
    assert_eq!(server.connections(), 0);
    assert!(ask(&resolving(Resolver::answering([&["127.0.0.1"]])), named(&server)).await.is_ok());
}

#[tokio::test]
async fn a_name_that_changes_its_mind_is_vetted_each_time_and_connected_to_as_vetted() {
    let server = Hostile::serve([(
        "/",
        vec![say("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"), Step::Close],
    )])
    .await;
    let resolver =
        Resolver::answering([&["127.0.0.1"], &["127.0.0.2"], &["127.0.0.1"], &["169.254.169.254"]]);
    let asked = Arc::clone(&resolver.asked);
    let client = resolving(resolver);
    assert!(ask(&client, named(&server)).await.is_ok());
    assert_eq!(kind(ask(&client, named(&server)).await), REFUSED);
    assert!(ask(&client, named(&server)).await.is_ok());
    assert_eq!(kind(ask(&client, named(&server)).await), REFUSED);
    assert_eq!(
        asked.lock().unwrap().len(),
        4,
        "each connection is resolved once, not once to vet and once to connect"
    );
}

#[tokio::test]
async fn failing_resolvers_are_told_from_missing_names() {
    let server = Hostile::serve([]).await;
    let missing = resolving(Resolver::failing(ResolveError::NotFound));
    assert_eq!(kind(ask(&missing, named(&server)).await), (HttpErrorKind::NameNotFound, Sent::Not));
    let empty = resolving(Resolver::answering([&[]]));
    assert_eq!(kind(ask(&empty, named(&server)).await), (HttpErrorKind::NameNotFound, Sent::Not));
    let failing = resolving(Resolver::failing(ResolveError::Failed("SERVFAIL from 127.0.0.53".to_owned())));
    let error = ask(&failing, named(&server)).await.unwrap_err();
    assert_eq!(error.kind, HttpErrorKind::NameLookupFailed);
    assert!(!error.kind.is_the_targets() && error.detail().contains("SERVFAIL"));
    let hanging = resolving(Resolver { answers: Mutex::default(), asked: Arc::default() });
    assert_eq!(
        kind(ask(&hanging, named(&server)).await),
        (HttpErrorKind::Timeout(Phase::Resolve), Sent::Not)
    );
    assert!(HttpErrorKind::NameNotFound.is_the_targets());
}

#[tokio::test]
async fn steps_before_the_request_end_at_the_deadline_too() {
    let server = Hostile::serve([]).await;
    let silent = Resolver { answers: Mutex::default(), asked: Arc::default() };
    let options =
        ClientOptions { resolve_limit: Duration::from_secs(60), ..ClientOptions::new(loopback_policy()) };
    let clock = Arc::new(SystemClock::new());
    let client = Client::with_resolver(options, clock.clone(), Arc::new(silent)).unwrap();
    let outcome = ask(&client, named(&server)).await;
    assert_eq!(kind(outcome), (HttpErrorKind::Timeout(Phase::Resolve), Sent::Not));
    assert!(clock.monotonic() < PATIENCE * 3);
}

#[tokio::test]
async fn a_huge_answer_is_refused() {
    let server = Hostile::serve([]).await;
    let client = resolving(Resolver::answering([&["127.0.0.1"; 10_000]]));
    assert_eq!(kind(ask(&client, named(&server)).await), REFUSED);
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn strangers_names_are_not_completed_with_search_domains() {
    for (policy, expected) in [
        (AddressPolicy::public(), "merchant.example."),
        (
            AddressPolicy { allow_networks: vec!["10.0.0.0/8".parse().unwrap()], ..AddressPolicy::public() },
            "merchant.example",
        ),
    ] {
        let resolver = Resolver::answering([&["127.0.0.9"]]);
        let asked = Arc::clone(&resolver.asked);
        let client = Client::with_resolver(
            ClientOptions::new(policy),
            Arc::new(SystemClock::new()),
            Arc::new(resolver),
        )
        .unwrap();
        assert_eq!(kind(ask(&client, "https://merchant.example/".parse().unwrap()).await), REFUSED);
        assert_eq!(*asked.lock().unwrap(), [expected]);
    }
}

#[tokio::test]
async fn clients_do_not_share_connections() {
    let server = Hostile::serve([]).await;
    let open = client();
    ask(&open, server.url("/")).await.unwrap();
    let strict = Client::new(
        ClientOptions::new(AddressPolicy { allow_http: true, ..AddressPolicy::public() }),
        Arc::new(SystemClock::new()),
    )
    .unwrap();
    assert_eq!(kind(ask(&strict, server.url("/")).await), REFUSED);
    ask(&client(), server.url("/")).await.unwrap();
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn an_address_that_does_not_answer_does_not_keep_the_others_from_it() {
    let server = Hostile::serve([]).await;
    let policy = AddressPolicy { allow_networks: vec!["127.0.0.0/8".parse().unwrap()], ..loopback_policy() };
    let resolver = Resolver::answering([&["127.0.0.2", "127.0.0.3", "127.0.0.1"]]);
    let client =
        Client::with_resolver(ClientOptions::new(policy), Arc::new(SystemClock::new()), Arc::new(resolver))
            .unwrap();
    let answer = client.send(Request::get(named(&server))).await.unwrap();
    assert_eq!(answer.peer, server.address);
    assert_eq!(
        server.requests()[0].matches(&format!("host: merchant.example:{}", server.address.port())).count(),
        1
    );
}

#[tokio::test]
async fn nobody_there_is_a_refused_connection() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: Url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    drop(listener);
    let error = ask(&client(), url).await.unwrap_err();
    assert_eq!((error.kind, error.sent), (HttpErrorKind::ConnectRefused, Sent::Not));
    assert_eq!(error.kind.as_str(), "connect_refused");
}

#[tokio::test]
async fn the_systems_resolver_works() {
    let server = Hostile::serve([]).await;
    let client =
        Client::new(ClientOptions::new(AddressPolicy::unrestricted()), Arc::new(SystemClock::new())).unwrap();
    let url: Url = format!("http://localhost:{}/", server.address.port()).parse().unwrap();
    let request = Request::new(Method::HEAD, url, Bytes::new());
    assert_eq!(client.send(request).await.unwrap().status, StatusCode::OK);
    assert!(server.requests()[0].contains(HOST.as_str()));
}
