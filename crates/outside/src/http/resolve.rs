//! From a name to addresses.
//!
//! Guarantees: lookups that hang cannot use up the runtime's blocking threads: at most
//! [`MOST_LOOKUPS`] run at a time, and one that was given up still holds its place until the system
//! lets it go.
//!
//! Deliberately absent: caching (open connections are the cache) and any trust in the answer: the
//! connector vets every address.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::Semaphore;

/// At most this many names are looked up at the same time.
pub const MOST_LOOKUPS: usize = 64;

/// Why a name has no addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The name does not exist or has no address (NXDOMAIN, NODATA).
    #[error("the name has no address")]
    NotFound,
    /// The lookup itself failed (SERVFAIL, no resolver, …). The text is for logs.
    #[error("the name could not be looked up")]
    Failed(String),
}

/// How names become addresses. The process has one real kind, [`SystemResolver`].
pub trait Resolve: Send + Sync + 'static {
    /// All addresses of `host`, a name without brackets or port.
    fn resolve(&self, host: String) -> BoxFuture<'static, Result<Vec<IpAddr>, ResolveError>>;
}

/// The system's resolver: hosts file, search domains and all.
#[derive(Debug, Clone)]
pub struct SystemResolver {
    places: Arc<Semaphore>,
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(MOST_LOOKUPS)) }
    }
}

impl Resolve for SystemResolver {
    fn resolve(&self, host: String) -> BoxFuture<'static, Result<Vec<IpAddr>, ResolveError>> {
        let places = Arc::clone(&self.places);
        async move {
            let place =
                places.acquire_owned().await.map_err(|error| ResolveError::Failed(error.to_string()))?;
            let lookup = tokio::task::spawn_blocking(move || {
                let addresses = (host.as_str(), 0).to_socket_addrs();
                drop(place);
                addresses
            });
            match lookup.await {
                Ok(Ok(addresses)) => Ok(addresses.map(|address| address.ip()).collect()),
                Ok(Err(error)) => Err(classify(&error)),
                Err(stopped) => Err(ResolveError::Failed(stopped.to_string())),
            }
        }
        .boxed()
    }
}

/// The standard library hands on the C library's words, not its number. These are the words of glibc,
/// musl and macOS for "no such name"; whatever else is said is held to be our own trouble.
fn classify(error: &io::Error) -> ResolveError {
    const NOT_FOUND: [&str; 5] = [
        "Name or service not known",
        "No address associated with hostname",
        "Name does not resolve",
        "Name has no usable address",
        "nodename nor servname provided, or not known",
    ];
    let text = error.to_string();
    if NOT_FOUND.iter().any(|words| text.contains(words)) {
        ResolveError::NotFound
    } else {
        ResolveError::Failed(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_a_missing_name_from_a_failing_resolver() {
        let said =
            |text: &str| classify(&io::Error::other(format!("failed to lookup address information: {text}")));
        assert_eq!(said("Name or service not known"), ResolveError::NotFound);
        assert_eq!(said("No address associated with hostname"), ResolveError::NotFound);
        for ours in [
            "Temporary failure in name resolution",
            "Try again",
            "Non-recoverable failure in name resolution",
            "",
        ] {
            assert!(matches!(said(ours), ResolveError::Failed(_)), "{ours}");
        }
    }
}
