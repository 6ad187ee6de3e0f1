//! A server that does what its path says, byte by byte, and remembers what happened.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use domain::time::Clock;
use outside::clock::SystemClock;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

/// What the server does once it has read a request, in order. After the last step it reads the next one.
#[derive(Clone)]
pub(crate) enum Step {
    /// Writes these bytes.
    Write(Vec<u8>),
    /// Writes these bytes one by one, a pause after each, for ever.
    Drip(Vec<u8>, Duration),
    /// Writes these bytes again and again, as fast as they are taken.
    Flood(Vec<u8>),
    /// Says nothing more, and reads nothing more.
    Silence,
    /// Closes politely.
    Close,
    /// Closes with a reset.
    Reset,
}

/// The same, for texts.
pub(crate) fn say(text: &str) -> Step {
    Step::Write(text.as_bytes().to_vec())
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) connections: AtomicU64,
    pub(crate) closed_by_peer: AtomicU64,
    pub(crate) written: AtomicU64,
    /// The heads and bodies of all requests, as they came.
    pub(crate) requests: Mutex<Vec<String>>,
}

pub(crate) struct Hostile {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Seen>,
}

impl Hostile {
    /// Serves these paths; others get an empty 200.
    pub(crate) async fn serve<const N: usize>(paths: [(&str, Vec<Step>); N]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let paths: Arc<HashMap<String, Vec<Step>>> =
            Arc::new(paths.into_iter().map(|(path, steps)| (path.to_owned(), steps)).collect());
        let shared = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                shared.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(converse(stream, Arc::clone(&paths), Arc::clone(&shared)));
            }
        });
        Self { address, seen }
    }

    pub(crate) fn url(&self, path: &str) -> Url {
        format!("http://{}{path}", self.address).parse().unwrap()
    }

    pub(crate) fn connections(&self) -> u64 {
        self.seen.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.seen.requests.lock().unwrap().clone()
    }
}

async fn converse(mut stream: TcpStream, paths: Arc<HashMap<String, Vec<Step>>>, seen: Arc<Seen>) {
    while let Some(request) = read_request(&mut stream).await {
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        seen.requests.lock().unwrap().push(request);
        let plain = vec![say("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")];
        for step in paths.get(&path).unwrap_or(&plain) {
            if !act(&mut stream, step, &seen).await {
                return;
            }
        }
    }
    seen.closed_by_peer.fetch_add(1, Ordering::SeqCst);
}

/// Whether the conversation goes on.
async fn act(stream: &mut TcpStream, step: &Step, seen: &Seen) -> bool {
    let clock = SystemClock::new();
    let written = |bytes: usize| seen.written.fetch_add(u64::try_from(bytes).unwrap(), Ordering::SeqCst);
    match step {
        Step::Write(bytes) => {
            written(bytes.len());
            stream.write_all(bytes).await.is_ok()
        }
        Step::Drip(bytes, pause) => loop {
            for byte in bytes {
                if stream.write_all(&[*byte]).await.is_err() {
                    return false;
                }
                written(1);
                clock.sleep(*pause).await;
            }
        },
        Step::Flood(bytes) => loop {
            if stream.write_all(bytes).await.is_err() {
                seen.closed_by_peer.fetch_add(1, Ordering::SeqCst);
                return false;
            }
            written(bytes.len());
        },
        Step::Silence => {
            // The peer's closing is still noticed.
            let mut sink = [0; 1024];
            while stream.read(&mut sink).await.is_ok_and(|read| read > 0) {}
            seen.closed_by_peer.fetch_add(1, Ordering::SeqCst);
            false
        }
        Step::Close => false,
        Step::Reset => {
            stream.set_zero_linger().unwrap();
            false
        }
    }
}

/// A request's head and its body by `content-length`; nothing when the peer closed.
pub(crate) async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).await.ok()? == 0 {
            return None;
        }
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes).unwrap();
    let length = head.lines().find_map(|line| {
        line.to_ascii_lowercase().strip_prefix("content-length: ").map(|length| length.parse().unwrap())
    });
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    Some(head + &String::from_utf8_lossy(&body))
}
