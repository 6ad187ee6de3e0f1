//! From an origin to an open connection: resolve, vet, connect, TLS.
//!
//! Guarantees: one forbidden address in an answer rejects the whole answer; only vetted addresses are
//! connected to, and the peer is compared with them again; each step has its own limit within the
//! caller's deadline. TLS is 1.2 or 1.3, and cannot be made to skip verification.
//!
//! Deliberately absent: proxies, whatever the environment says, and client certificates.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use domain::time::Clock;
use futures::StreamExt;
use futures::future::{Either, select};
use futures::stream::FuturesUnordered;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Host;

use super::Timings;
use super::error::{HttpError, HttpErrorKind, Phase, TlsFault};
use super::resolve::{Resolve, ResolveError};
use super::target::{AddressPolicy, Origin, TargetRefused};
use crate::guard::deadline::{Deadline, DeadlinePassed, within};

/// How long one address gets before the next one is tried beside it (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);
/// A name with more addresses than this is refused rather than vetted.
const MOST_ADDRESSES: usize = 64;
/// No more addresses than this are tried for one connection.
const MOST_DIALLED: usize = 8;

/// Whom we trust to vouch for others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// Certificates, PEM, that are trusted beside the public ones: a private network's own authority.
    pub extra_roots_pem: Vec<u8>,
}

/// Something bytes go through: TCP or TLS over TCP.
pub(super) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// An open, vetted connection.
pub(super) struct Opened {
    pub(super) stream: Box<dyn Wire>,
    pub(super) peer: SocketAddr,
    pub(super) timings: Timings,
}

/// Opens connections under one policy.
pub(super) struct Connector {
    pub(super) policy: AddressPolicy,
    pub(super) resolver: Arc<dyn Resolve>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) resolve_limit: Duration,
    pub(super) connect_limit: Duration,
    pub(super) tls_limit: Duration,
}

impl Connector {
    pub(super) async fn open(&self, origin: &Origin, deadline: &mut Deadline) -> Result<Opened, HttpError> {
        let started = self.clock.monotonic();
        let addresses = self.addresses(origin, deadline).await?;
        let resolved = self.clock.monotonic();
        let (stream, peer) = self.connect(&addresses, deadline).await?;
        let connected = self.clock.monotonic();
        let stream: Box<dyn Wire> = if origin.secure {
            self.handshake(&origin.host, stream, deadline).await?
        } else {
            Box::new(stream)
        };
        let timings = Timings {
            resolve: resolved.saturating_sub(started),
            connect: connected.saturating_sub(resolved),
            tls: self.clock.monotonic().saturating_sub(connected),
            ..Timings::default()
        };
        Ok(Opened { stream, peer, timings })
    }

    /// The addresses of an origin, each of them vetted.
    async fn addresses(
        &self,
        origin: &Origin,
        deadline: &mut Deadline,
    ) -> Result<Vec<SocketAddr>, HttpError> {
        let found = match &origin.host {
            Host::Ipv4(address) => vec![IpAddr::V4(*address)],
            Host::Ipv6(address) => vec![IpAddr::V6(*address)],
            Host::Domain(name) => self.resolve(name, deadline).await?,
        };
        if found.is_empty() {
            return Err(HttpError::unsent(HttpErrorKind::NameNotFound, "the answer holds no address"));
        }
        if found.len() > MOST_ADDRESSES {
            let detail = format!("the name has {} addresses", found.len());
            return Err(HttpError::unsent(HttpErrorKind::Refused(TargetRefused::Address), detail));
        }
        let addresses: Vec<SocketAddr> =
            found.into_iter().map(|ip| SocketAddr::new(ip, origin.port)).collect();
        for address in &addresses {
            self.policy.vet(*address).map_err(|refused| {
                HttpError::unsent(HttpErrorKind::Refused(refused), format!("resolved to {address}"))
            })?;
        }
        Ok(in_dialling_order(addresses))
    }

    async fn resolve(&self, name: &str, deadline: &mut Deadline) -> Result<Vec<IpAddr>, HttpError> {
        // A final dot keeps the system from appending its search domains to a stranger's name.
        let absolute = self.policy.is_public_only() && !name.ends_with('.');
        let name = if absolute { format!("{name}.") } else { name.to_owned() };
        let answer =
            self.step(Phase::Resolve, self.resolve_limit, deadline, self.resolver.resolve(name)).await?;
        answer.map_err(|error| match error {
            ResolveError::NotFound => HttpError::unsent(HttpErrorKind::NameNotFound, ""),
            ResolveError::Failed(detail) => HttpError::unsent(HttpErrorKind::NameLookupFailed, detail),
        })
    }

    async fn connect(
        &self,
        addresses: &[SocketAddr],
        deadline: &mut Deadline,
    ) -> Result<(TcpStream, SocketAddr), HttpError> {
        let dialled = self.step(Phase::Connect, self.connect_limit, deadline, self.dial(addresses)).await?;
        let stream = dialled.map_err(|error| connect_error(&error))?;
        let peer = stream.peer_addr().map_err(|error| connect_error(&error))?;
        if !addresses.iter().any(|address| address.ip() == peer.ip() && address.port() == peer.port()) {
            let detail = format!("connected to {peer}, which was not asked for");
            return Err(HttpError::unsent(HttpErrorKind::Refused(TargetRefused::Address), detail));
        }
        // Without it, small requests on a kept connection wait for the other side's delayed acknowledgement.
        stream.set_nodelay(true).map_err(|error| connect_error(&error))?;
        Ok((stream, peer))
    }

    /// The first connection that opens. Addresses are tried in order; the next one starts when one fails
    /// or is slow.
    async fn dial(&self, addresses: &[SocketAddr]) -> io::Result<TcpStream> {
        let mut waiting = addresses.iter().take(MOST_DIALLED).copied();
        let mut dialling = FuturesUnordered::new();
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        loop {
            if let Some(address) = waiting.next() {
                dialling.push(TcpStream::connect(address));
            }
            match select(dialling.next(), self.clock.sleep(STAGGER)).await {
                Either::Left((Some(Ok(stream)), _)) => return Ok(stream),
                Either::Left((Some(Err(error)), _)) => last = error,
                Either::Left((None, _)) => return Err(last),
                Either::Right(_) => {}
            }
        }
    }

    async fn handshake(
        &self,
        host: &Host<String>,
        stream: TcpStream,
        deadline: &mut Deadline,
    ) -> Result<Box<dyn Wire>, HttpError> {
        let name = match host {
            Host::Ipv4(address) => ServerName::from(IpAddr::V4(*address)),
            Host::Ipv6(address) => ServerName::from(IpAddr::V6(*address)),
            // A final dot is no part of a certificate's name.
            Host::Domain(name) => ServerName::try_from(name.strip_suffix('.').unwrap_or(name).to_owned())
                .map_err(|_| HttpError::from(TargetRefused::Name))?,
        };
        let handshake = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream);
        match self.step(Phase::Tls, self.tls_limit, deadline, handshake).await? {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(HttpError::unsent(HttpErrorKind::Tls(tls_fault(&error)), error.to_string())),
        }
    }

    /// One step within its own limit and the caller's deadline.
    async fn step<W: Future>(
        &self,
        phase: Phase,
        limit: Duration,
        deadline: &mut Deadline,
        work: W,
    ) -> Result<W::Output, HttpError> {
        match deadline.race(within(&*self.clock, limit, work)).await {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(DeadlinePassed)) | Err(DeadlinePassed) => {
                Err(HttpError::unsent(HttpErrorKind::Timeout(phase), "before the request was sent"))
            }
        }
    }
}

/// IPv6 and IPv4 in turn, beginning with whichever the resolver put first (RFC 8305 §4).
fn in_dialling_order(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (preferred, other): (Vec<_>, Vec<_>) =
        addresses.iter().copied().partition(|address| address.is_ipv6() == first_is_v6);
    let mut ordered = Vec::with_capacity(addresses.len());
    let mut other = other.into_iter();
    for address in preferred {
        ordered.push(address);
        ordered.extend(other.next());
    }
    ordered.extend(other);
    ordered
}

fn connect_error(error: &io::Error) -> HttpError {
    let kind = match error.kind() {
        io::ErrorKind::ConnectionRefused => HttpErrorKind::ConnectRefused,
        _ => HttpErrorKind::ConnectFailed,
    };
    HttpError::unsent(kind, error.to_string())
}

/// The class of a handshake that failed.
fn tls_fault(error: &io::Error) -> TlsFault {
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return TlsFault::Broken;
    };
    match error {
        rustls::Error::InvalidCertificate(fault) => match fault {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => TlsFault::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                TlsFault::NotYetValid
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                TlsFault::WrongName
            }
            CertificateError::UnknownIssuer => TlsFault::UnknownIssuer,
            CertificateError::Revoked => TlsFault::Revoked,
            _ => TlsFault::BadCertificate,
        },
        rustls::Error::NoCertificatesPresented => TlsFault::BadCertificate,
        rustls::Error::PeerIncompatible(_) => TlsFault::Incompatible,
        rustls::Error::AlertReceived(
            rustls::AlertDescription::ProtocolVersion | rustls::AlertDescription::HandshakeFailure,
        ) => TlsFault::Incompatible,
        rustls::Error::AlertReceived(_) => TlsFault::Alert,
        _ => TlsFault::Broken,
    }
}

/// Certificates are judged at the time of our clock.
struct CertificateTime(Arc<dyn Clock>);

impl std::fmt::Debug for CertificateTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CertificateTime")
    }
}

impl rustls::time_provider::TimeProvider for CertificateTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().as_seconds()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// TLS with the public roots that are compiled in (Mozilla's, so that an image without a certificate store
/// works and every machine judges alike) and the operator's own.
///
/// # Errors
/// A text for the operator, when the extra roots cannot be read.
pub(super) fn tls_config(trust: &Trust, clock: Arc<dyn Clock>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for certificate in CertificateDer::pem_slice_iter(&trust.extra_roots_pem) {
        let certificate = certificate.map_err(|error| format!("extra roots: {error}"))?;
        roots.add(certificate).map_err(|error| format!("extra roots: {error}"))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_details(provider, Arc::new(CertificateTime(clock)))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
