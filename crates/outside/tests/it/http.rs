//! The client against servers that mean it harm.

use std::sync::Arc;

use outside::clock::SystemClock;
use outside::http::{AddressPolicy, BodyEnd, Client, ClientOptions, Http, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

#[tokio::test]
async fn asks_and_keeps_the_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(read) = stream.read(&mut buffer).await {
                    if read == 0 {
                        return;
                    }
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
                }
            });
        }
    });
    let client =
        Client::new(ClientOptions::new(AddressPolicy::unrestricted()), Arc::new(SystemClock::new())).unwrap();
    let url: url::Url = format!("http://localhost:{port}/a?b=c").parse().unwrap();
    let mut reused = Vec::new();
    for _ in 0..50 {
        let answer = client.send(Request::post(url.clone(), "body")).await.unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(&answer.body[..], b"hi");
        assert_eq!(answer.ended, BodyEnd::Whole);
        reused.push(answer.timings.reused);
    }
    assert!(reused.iter().filter(|reused| !**reused).count() <= 2, "{reused:?}");
}
