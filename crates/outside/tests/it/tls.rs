//! The client against certificates and handshakes that are not in order.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use domain::time::Clock;
use futures::FutureExt;
use futures::future::BoxFuture;
use outside::clock::SystemClock;
use outside::http::{
    AddressPolicy, Client, ClientOptions, Http, HttpError, HttpErrorKind, Phase, Request, Resolve,
    ResolveError, Sent, TlsFault, Trust,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::hostile::read_request;
use crate::manual::ManualClock;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn called(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A server with a certificate for this name, valid from the start of 2026 to the end of 2030.
    async fn serve(&self, name: &str) -> SocketAddr {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2030, 12, 31);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    while read_request(&mut stream).await.is_some() {
                        stream
                            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecure")
                            .await
                            .unwrap();
                    }
                });
            }
        });
        address
    }
}

/// Everything is on this machine.
struct Here;

impl Resolve for Here {
    fn resolve(&self, _host: String) -> BoxFuture<'static, Result<Vec<IpAddr>, ResolveError>> {
        async { Ok(vec![IpAddr::from([127, 0, 0, 1])]) }.boxed()
    }
}

fn client(trusting: &str, clock: Arc<dyn Clock>) -> Client {
    let options = ClientOptions {
        trust: Trust { extra_roots_pem: trusting.as_bytes().to_vec() },
        tls_limit: Duration::from_millis(400),
        ..ClientOptions::new(AddressPolicy::unrestricted())
    };
    Client::with_resolver(options, clock, Arc::new(Here)).unwrap()
}

/// A clock that never rings, set to `years` after the manual clock's start.
fn years_later(years: u64) -> Arc<dyn Clock> {
    let clock = ManualClock::default();
    clock.advance(Duration::from_secs(years * 365 * 86_400));
    Arc::new(clock)
}

async fn ask(client: &Client, name: &str, server: SocketAddr) -> Result<String, HttpError> {
    let url = format!("https://{name}:{}/", server.port()).parse().unwrap();
    let answer = client.send(Request::post(url, "body")).await?;
    Ok(String::from_utf8(answer.body.to_vec()).unwrap())
}

fn fault(outcome: Result<String, HttpError>) -> TlsFault {
    match outcome.unwrap_err() {
        HttpError { kind: HttpErrorKind::Tls(fault), sent: Sent::Not, .. } => fault,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_certificate_in_order_is_accepted_for_names_and_addresses() {
    let authority = Authority::called("ours");
    let client = client(&authority.pem, years_later(0));
    for name in ["merchant.example", "127.0.0.1"] {
        let server = authority.serve(name).await;
        assert_eq!(ask(&client, name, server).await.unwrap(), "secure");
    }
    let server = authority.serve("merchant.example").await;
    assert_eq!(
        ask(&client, "merchant.example.", server).await.unwrap(),
        "secure",
        "a final dot is not part of it"
    );
}

#[tokio::test]
async fn certificates_out_of_order_are_refused_each_with_its_class() {
    let authority = Authority::called("ours");
    let server = authority.serve("merchant.example").await;
    let trusting = |years| client(&authority.pem, years_later(years));
    assert_eq!(fault(ask(&trusting(6), "merchant.example", server).await), TlsFault::Expired);
    assert_eq!(fault(ask(&trusting(0), "other.example", server).await), TlsFault::WrongName);
    assert_eq!(fault(ask(&trusting(0), "127.0.0.1", server).await), TlsFault::WrongName);
    assert_eq!(
        fault(ask(&client("", years_later(0)), "merchant.example", server).await),
        TlsFault::UnknownIssuer
    );
    let stranger = Authority::called("a stranger's");
    assert_eq!(
        fault(ask(&client(&stranger.pem, years_later(0)), "merchant.example", server).await),
        TlsFault::UnknownIssuer
    );
    let early = Arc::new(Early);
    assert_eq!(
        fault(ask(&client(&authority.pem, early), "merchant.example", server).await),
        TlsFault::NotYetValid
    );
}

/// A machine whose clock was never set.
struct Early;

impl Clock for Early {
    fn now(&self) -> domain::time::Timestamp {
        domain::time::Timestamp::EPOCH
    }
    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
    fn sleep(&self, _span: Duration) -> domain::time::Sleep {
        Box::pin(std::future::pending())
    }
}

/// A server that reads the greeting and answers with these bytes.
async fn answering(bytes: &'static [u8], close: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut greeting = [0; 16 * 1024];
                let _greeting = stream.read(&mut greeting).await;
                stream.write_all(bytes).await.unwrap();
                if !close {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn handshakes_out_of_order_are_told_apart() {
    let client = client("", Arc::new(SystemClock::new()));
    let ask = async |server| ask(&client, "merchant.example", server).await;
    let stalled = ask(answering(b"", false).await).await.unwrap_err();
    assert_eq!((stalled.kind, stalled.sent), (HttpErrorKind::Timeout(Phase::Tls), Sent::Not));
    assert_eq!(fault(ask(answering(b"", true).await).await), TlsFault::Broken);
    assert_eq!(
        fault(ask(answering(b"HTTP/1.1 400 Bad Request\r\n\r\n", true).await).await),
        TlsFault::Broken
    );
    // Alerts: protocol_version, as a server that speaks TLS 1.0 alone sends it, and internal_error.
    assert_eq!(
        fault(ask(answering(b"\x15\x03\x01\x00\x02\x02\x46", true).await).await),
        TlsFault::Incompatible
    );
    assert_eq!(fault(ask(answering(b"\x15\x03\x03\x00\x02\x02\x50", true).await).await), TlsFault::Alert);
}

#[test]
fn roots_that_cannot_be_read_make_no_client() {
    let options = ClientOptions {
        trust: Trust {
            extra_roots_pem: b"-----BEGIN CERTIFICATE-----\nbm90IG9uZQ==\n-----END CERTIFICATE-----\n"
                .to_vec(),
        },
        ..ClientOptions::new(AddressPolicy::public())
    };
    assert!(Client::new(options, Arc::new(SystemClock::new())).is_err());
}
