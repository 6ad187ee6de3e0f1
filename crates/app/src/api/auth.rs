//! Who calls, and what they may do.
//!
//! A key is `qk_`, 43 random characters (256 bits) and `_` with a checksum of six, so that a scanner finds a leaked key
//! and a typing error is told apart from a wrong key without a look-up. Only the SHA-256 of a key is kept. Comparing is
//! looking up that digest: what a timing could tell about a digest says nothing about a key.
//!
//! Guarantees: a route without a scope in its extractor does not exist for callers without a key, save the public
//! ones that [`super::PUBLIC`] lists; a revoked key is refused at its next request. With `auth = "none"` (loopback only) the
//! `Host` must name this machine, so that no web page can reach the server under a name of its own; and changing
//! requests of browsers must come from our own pages.

use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use domain::chance::Chance;
use domain::id::KeyId;
use durable::store::{StoreError, api_key};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use url::Url;
use zeroize::Zeroizing;

use super::AppState;
use super::problem::Problem;
use crate::config::{Auth, Server};

const PREFIX: &str = "qk_";
const SECRET_CHARS: usize = 43;
const CHECK_CHARS: usize = 6;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// What a key may be used for. Each scope includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// See everything that is no secret.
    Read,
    /// Make and withdraw invoices, keep endpoints, send deliveries again.
    Write,
    /// Say to which invoice money belongs.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Admin];

    /// The spelling in keys' rows and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

impl std::str::FromStr for Scope {
    type Err = domain::chain::InvalidWord;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text).ok_or(domain::chain::InvalidWord)
    }
}

/// A fresh key. It is shown once; keep its [`digest`].
#[must_use]
pub fn mint_key(chance: &Chance) -> Zeroizing<String> {
    let mut key = Zeroizing::new(String::with_capacity(PREFIX.len() + SECRET_CHARS + 1 + CHECK_CHARS));
    key.push_str(PREFIX);
    for _ in 0..SECRET_CHARS {
        let index = usize::try_from(chance.below(62)).unwrap_or(0);
        key.push(char::from(ALPHABET[index]));
    }
    let check = checksum(&key);
    key.push('_');
    key.push_str(&check);
    key
}

/// What is kept of a key.
#[must_use]
pub fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Whether a text is a key at all: right length, right characters, right checksum.
#[must_use]
pub fn is_well_formed(key: &str) -> bool {
    let Some((body, check)) = key.rsplit_once('_') else { return false };
    let Some(secret) = body.strip_prefix(PREFIX) else { return false };
    secret.len() == SECRET_CHARS
        && secret.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && bool::from(checksum(body).as_bytes().ct_eq(check.as_bytes()))
}

/// CRC-32 (ISO-HDLC) in base 62: it finds typing errors and tells keys from other texts; it proves nothing.
fn checksum(body: &str) -> String {
    let mut crc = u32::MAX;
    for byte in body.bytes() {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    let mut rest = !crc;
    let mut digits = [b'0'; CHECK_CHARS];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[usize::try_from(rest % 62).unwrap_or(0)];
        rest /= 62;
    }
    digits.iter().copied().map(char::from).collect()
}

/// Who made a request.
#[derive(Debug, Clone)]
pub struct Caller {
    key: Option<KeyId>,
    scope: Scope,
}

impl Caller {
    /// The name under which idempotency keys are kept apart.
    pub(super) fn principal(&self) -> String {
        self.key.map_or_else(|| "local".to_owned(), |key| key.to_string())
    }

    pub(crate) fn may(&self, scope: Scope) -> bool {
        self.scope >= scope
    }
}

/// The caller of a request that needs at least the scope `read`.
pub(super) struct Reads;
/// The caller of a request that needs at least the scope `write`.
pub(super) struct Writes(pub(super) Caller);
/// The caller of a request that needs the scope `admin`.
pub(super) struct Administers(pub(super) Caller);

macro_rules! needs {
    ($($name:ident, $scope:expr => |$caller:ident| $made:expr;)+) => {$(
        impl FromRequestParts<AppState> for $name {
            type Rejection = Problem;
            async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
                let $caller = identify(&parts.headers, state).await?;
                if $caller.may($scope) { Ok($made) } else { Err(Problem::forbidden($scope.as_str())) }
            }
        }
    )+};
}

needs! {
    Reads, Scope::Read => |caller| Self;
    Writes, Scope::Write => |caller| Self(caller);
    Administers, Scope::Admin => |caller| Self(caller);
}

/// Finds out who calls.
pub(crate) async fn identify(headers: &HeaderMap, state: &AppState) -> Result<Caller, Problem> {
    match bearer(headers)? {
        Some(key) => of_key(&key, state).await?.ok_or_else(Problem::unauthorized),
        None if state.config.server.auth == Auth::None => Ok(Caller { key: None, scope: Scope::Admin }),
        None => Err(Problem::unauthorized()),
    }
}

/// The caller that holds a key, if the key is known and not revoked.
pub(crate) async fn of_key(key: &str, state: &AppState) -> Result<Option<Caller>, Problem> {
    if !is_well_formed(key) {
        return Ok(None);
    }
    of_digest(digest(key), state).await
}

/// The caller whose key has this digest, if the key is known and not revoked.
pub(crate) async fn of_digest(digest: [u8; 32], state: &AppState) -> Result<Option<Caller>, Problem> {
    let found = state.store.read(move |query| api_key::find_by_digest(query, &digest)).await?;
    let Some(row) = found else { return Ok(None) };
    let scope = row.scopes.iter().filter_map(|scope| scope.parse::<Scope>().ok()).max();
    let Some(scope) = scope else { return Ok(None) };
    touch(state, &row).await;
    Ok(Some(Caller { key: Some(row.id), scope }))
}

/// Notes the use of a key at most once a minute. That it was not noted is no reason to refuse a request.
async fn touch(state: &AppState, row: &api_key::ApiKey) {
    let now = state.clock.now();
    let noted = row.last_used_at.is_some_and(|at| now.since(at) < std::time::Duration::from_secs(60));
    if noted {
        return;
    }
    let id = row.id;
    let noted: Result<(), StoreError> = state.store.write(move |tx| api_key::touch(tx, id)).await;
    if let Err(error) = noted {
        tracing::warn!(%error, "the use of an API key was not noted");
    }
}

fn bearer(headers: &HeaderMap) -> Result<Option<Zeroizing<String>>, Problem> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Problem::unauthorized());
    }
    let text = value.to_str().map_err(|_| Problem::unauthorized())?;
    match text.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => {
            Ok(Some(Zeroizing::new(key.trim().to_owned())))
        }
        _ => Err(Problem::unauthorized()),
    }
}

/// Refuses what another web page could have made a browser send.
pub(super) async fn refuse_cross_site(
    State(state): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    match check_site(&state.config.server, request.method(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

fn check_site(server: &Server, method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    // Browsers add no bearer key by themselves: whoever sends one is no cross-site form.
    if headers.contains_key(AUTHORIZATION) {
        return Ok(());
    }
    if server.auth == Auth::None && !host_is_ours(server, headers) {
        return Err(Problem::cross_site(
            "the Host header names another machine than the one that was configured",
        ));
    }
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    match (header(headers, "sec-fetch-site"), header(headers, ORIGIN.as_str())) {
        (Some("same-origin" | "none"), _) | (None, None) => Ok(()),
        (None, Some(origin)) if origin_is_ours(server, headers, origin) => Ok(()),
        _ => Err(Problem::cross_site("changing requests of browsers must come from our own pages")),
    }
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).map(|value| value.to_str().unwrap_or("?"))
}

/// Whether `Host` is a name of this machine's loopback, or the host of `public_url`.
fn host_is_ours(server: &Server, headers: &HeaderMap) -> bool {
    let Some(host) = header(headers, HOST.as_str()) else { return true };
    let Ok(url) = Url::parse(&format!("http://{host}")) else { return false };
    let public = Url::parse(&server.public_url).ok();
    let local = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    local || public.is_some_and(|public| public.host() == url.host())
}

fn origin_is_ours(server: &Server, headers: &HeaderMap, origin: &str) -> bool {
    let Ok(origin) = Url::parse(origin) else { return false };
    let same = |url: &Url| url.origin() == origin.origin();
    let public = Url::parse(&server.public_url).is_ok_and(|public| same(&public));
    // Under `auth = "none"` the Host was checked before; its own pages may also be opened by its address.
    let by_host = server.auth == Auth::None
        && header(headers, HOST.as_str())
            .and_then(|host| Url::parse(&format!("http://{host}")).ok())
            .is_some_and(|host| same(&host));
    public || by_host
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_told_from_any_other_text() {
        let key = mint_key(&Chance::from_seed(7));
        assert!(is_well_formed(&key), "{}", *key);
        assert_eq!(key.len(), 53);
        assert_ne!(*key, *mint_key(&Chance::from_seed(8)));
        for index in 0..key.len() {
            let mut bytes = key.as_bytes().to_vec();
            bytes[index] = if bytes[index] == b'x' { b'y' } else { b'x' };
            assert!(!is_well_formed(std::str::from_utf8(&bytes).unwrap()), "position {index}");
        }
        for bad in ["", "qk_", "qk__", "_", &key[1..], &format!("{}0", *key)] {
            assert!(!is_well_formed(bad), "{bad}");
        }
    }

    #[test]
    fn the_checksum_is_crc_32() {
        // The check value of CRC-32/ISO-HDLC is cbf43926 for "123456789".
        let mut value = 0xCBF4_3926_u32;
        let mut expected = [b'0'; 6];
        for digit in expected.iter_mut().rev() {
            *digit = ALPHABET[(value % 62) as usize];
            value /= 62;
        }
        assert_eq!(checksum("123456789").as_bytes(), expected);
    }

    #[test]
    fn scopes_include_the_lesser() {
        assert!(Scope::Admin > Scope::Write && Scope::Write > Scope::Read);
        let writer = Caller { key: None, scope: Scope::Write };
        assert!(writer.may(Scope::Read) && writer.may(Scope::Write) && !writer.may(Scope::Admin));
    }

    fn server(auth: Auth) -> Server {
        Server {
            listen: ([127, 0, 0, 1], 4020).into(),
            public_url: "https://pay.example.com".to_owned(),
            auth,
            max_body_bytes: 1,
            request_timeout: std::time::Duration::ZERO,
            shutdown_grace: std::time::Duration::ZERO,
        }
    }

    #[test]
    fn what_another_page_could_send_is_refused() {
        let check = |auth, method: Method, headers: &[(&'static str, &str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(*name, value.parse().unwrap());
            }
            check_site(&server(auth), &method, &map).is_ok()
        };
        let local = ("host", "127.0.0.1:4020");
        assert!(check(Auth::None, Method::POST, &[local]), "a program");
        assert!(check(Auth::None, Method::POST, &[local, ("sec-fetch-site", "same-origin")]));
        assert!(check(Auth::None, Method::POST, &[local, ("sec-fetch-site", "none")]));
        assert!(check(Auth::None, Method::POST, &[local, ("origin", "http://127.0.0.1:4020")]));
        assert!(check(Auth::Keys, Method::POST, &[local, ("origin", "https://pay.example.com")]));
        assert!(check(Auth::None, Method::GET, &[("host", "localhost:4020")]));
        assert!(check(Auth::None, Method::GET, &[("host", "[::1]:4020")]));
        for (auth, method, headers) in [
            (Auth::None, Method::POST, vec![local, ("sec-fetch-site", "cross-site")]),
            (Auth::None, Method::POST, vec![local, ("sec-fetch-site", "same-site")]),
            (Auth::None, Method::DELETE, vec![local, ("origin", "http://127.0.0.1:9999")]),
            (Auth::None, Method::POST, vec![local, ("origin", "null")]),
            (Auth::Keys, Method::POST, vec![("host", "evil.example"), ("origin", "http://evil.example")]),
            (Auth::None, Method::GET, vec![("host", "evil.example")]),
            (Auth::None, Method::GET, vec![("host", "127.0.0.1.evil.example:4020")]),
            (Auth::None, Method::GET, vec![("host", "user@127.0.0.1/")]),
        ] {
            let refused = !check(auth, method, &headers);
            // A user name before the address still leads to the address.
            assert_eq!(refused, !headers.iter().any(|(_, v)| v.starts_with("user@")), "{headers:?}");
        }
    }
}
