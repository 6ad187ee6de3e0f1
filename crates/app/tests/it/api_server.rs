//! The server on a real socket: connections that begin badly, streams, and the end.

use std::sync::Arc;
use std::time::Duration;

use app::api::{Shell, serve};
use app::compose::{App, Ports};
use domain::time::Clock;
use outside::clock::SystemClock;
use outside::guard::deadline::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::world::{Settings, World};

const PATIENCE: Duration = Duration::from_secs(30);

struct Running {
    _world: World,
    address: std::net::SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

async fn start(grace: Duration) -> Running {
    start_with(grace, PATIENCE).await
}

async fn start_with(grace: Duration, request_timeout: Duration) -> Running {
    let world = World::stopped(Settings::default()).await;
    let mut config = world.config();
    config.server.shutdown_grace = grace;
    config.server.request_timeout = request_timeout;
    let ports = Ports::system(&config).unwrap();
    let app = App::start(config, ports).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let shell = Shell::new(Arc::clone(&app));
    let serving = tokio::spawn(serve(shell, listener, async move { drop(stopped.await) }));
    Running { _world: world, address, stop, serving }
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    within(&SystemClock::new(), PATIENCE, what).await.expect("it takes too long")
}

/// Everything until the other side ends.
async fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end, too.
    let _ = in_time(stream.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let mut text = String::new();
    while !text.contains(wanted) {
        let mut buffer = [0; 4096];
        let count = in_time(stream.read(&mut buffer)).await.unwrap();
        assert!(count > 0, "it ended before {wanted}: {text}");
        text += &String::from_utf8_lossy(&buffer[..count]);
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_request_harms_nobody_else() {
    let running = start(Duration::from_secs(1)).await;
    let many_headers = format!("GET / HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "x: y\r\n".repeat(100));
    let long_header = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(40_000));
    for bytes in ["\u{16}\u{3}\u{1}hello tls", "NOT HTTP AT ALL\r\n\r\n", &many_headers, &long_header] {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        // The server may end before everything is written.
        let _ = stream.write_all(bytes.as_bytes()).await;
        let answer = read_all(&mut stream).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let mut half = TcpStream::connect(running.address).await.unwrap();
    half.write_all(b"GET /healthz HT").await.unwrap();
    let mut good = TcpStream::connect(running.address).await.unwrap();
    good.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(read_all(&mut good).await.contains("\"status\":\"ok\""));
    // A body that promises more than may be sent is refused without being read.
    let mut large = TcpStream::connect(running.address).await.unwrap();
    large
        .write_all(b"POST /v1/invoices HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\nconnection: close\r\n\r\n{")
        .await
        .unwrap();
    let refused = read_until(&mut large, "body_too_large").await;
    assert!(refused.starts_with("HTTP/1.1 413"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_orderly() {
    let running = start(Duration::from_secs(20)).await;
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    stream.write_all(b"GET /v1/events/stream HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    read_until(&mut stream, "text/event-stream").await;
    let mut idle = TcpStream::connect(running.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    read_until(&mut idle, "\"ok\"").await;
    let clock = SystemClock::new();
    running.stop.send(()).unwrap();
    assert!(read_all(&mut stream).await.ends_with("0\r\n\r\n"), "the stream is ended, not cut");
    assert_eq!(read_all(&mut idle).await, "", "a kept connection is closed");
    in_time(running.serving).await.unwrap();
    assert!(clock.monotonic() < Duration::from_secs(10), "nobody waited for the grace");
    assert!(TcpStream::connect(running.address).await.is_err(), "nothing new is accepted");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_finish_is_cut_after_the_grace() {
    let running = start(Duration::from_millis(200)).await;
    let mut slow = TcpStream::connect(running.address).await.unwrap();
    slow.write_all(b"POST /v1/invoices HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{").await.unwrap();
    // The request has begun when its connection is known to the server: another answer on a later one shows that.
    let mut other = TcpStream::connect(running.address).await.unwrap();
    other.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    read_until(&mut other, "\"ok\"").await;
    running.stop.send(()).unwrap();
    in_time(running.serving).await.unwrap();
    assert_eq!(read_all(&mut slow).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_a_deadline_and_says_what_is_known() {
    let running = start_with(Duration::from_secs(1), Duration::from_millis(100)).await;
    let mut slow = TcpStream::connect(running.address).await.unwrap();
    let head = "POST /v1/invoices HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
    slow.write_all(head.as_bytes()).await.unwrap();
    let answer = read_until(&mut slow, "\"outcome\":\"unknown\"").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\"code\":\"timeout\""), "{answer}");
    assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
}
