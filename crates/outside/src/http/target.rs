//! Which targets may be asked: the rules for URLs, names and addresses.
//!
//! Guarantees: the same rules hold when a target is registered and each time it is asked. An address
//! passes if an operator's list names its network, or if it is in no range that the IANA
//! special-purpose registries (RFC 6890 and its successors) keep from being globally reachable, embeds no IPv4 address,
//! and its port is allowed. Only parsed URLs are judged, so that no spelling of an address slips by.
//!
//! Deliberately absent: the reason in detail. Whoever chose the target learns a coarse class, so that
//! refusals cannot be used to map our network.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::{Host, Url};

/// Longer URLs are refused, in bytes.
pub const MAX_URL_BYTES: usize = 2048;

/// Why a target is not asked. Coarse on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TargetRefused {
    /// Not an absolute URL with a host, or one that cannot be sent.
    #[error("not a valid URL")]
    Malformed,
    /// Above [`MAX_URL_BYTES`].
    #[error("the URL is longer than 2048 bytes")]
    TooLong,
    /// Not `https`, nor `http` where that is allowed.
    #[error("the URL's scheme is not allowed")]
    Scheme,
    /// A user name or password in the URL.
    #[error("the URL must not contain a user name or password")]
    UserInfo,
    /// A port that the policy does not allow.
    #[error("the URL's port is not allowed")]
    Port,
    /// A name that belongs to a machine or a private network, by its form.
    #[error("the host is not allowed")]
    Name,
    /// An address that the policy does not allow, written out or found by resolving.
    #[error("the host's address is not allowed")]
    Address,
}

impl TargetRefused {
    /// The stable word for records and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "target_malformed",
            Self::TooLong => "target_too_long",
            Self::Scheme => "target_scheme",
            Self::UserInfo => "target_userinfo",
            Self::Port => "target_port",
            Self::Name => "target_name",
            Self::Address => "target_address",
        }
    }
}

/// Which ports of public addresses may be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ports {
    /// 443, and 80 where plain HTTP is allowed.
    Standard,
    /// These.
    Only(Vec<u16>),
    /// All but 0.
    Any,
}

/// The rules of one client. Rules do not change while a client lives: another policy is another client,
/// with connections of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressPolicy {
    /// Networks that are allowed though they are not public, on any port. The list opens what it names
    /// and nothing by embedding: `127.0.0.0/8` does not open `::ffff:127.0.0.1`.
    pub allow_networks: Vec<IpNet>,
    /// Whether `http` is allowed beside `https`.
    pub allow_http: bool,
    /// Whether a URL may hold a user name and password; they are sent as Basic credentials (RFC 7617).
    pub allow_userinfo: bool,
    /// The ports of public addresses.
    pub ports: Ports,
}

impl AddressPolicy {
    /// For targets that strangers chose: public addresses, `https`, the standard port.
    #[must_use]
    pub const fn public() -> Self {
        Self { allow_networks: Vec::new(), allow_http: false, allow_userinfo: false, ports: Ports::Standard }
    }

    /// For targets that the operator configured, such as nodes in a private network: anything.
    #[must_use]
    pub fn unrestricted() -> Self {
        Self {
            allow_networks: vec![
                IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
                IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
            ],
            allow_http: true,
            allow_userinfo: true,
            ports: Ports::Any,
        }
    }

    /// Judges everything about a URL that can be judged without resolving its name.
    ///
    /// # Errors
    /// [`TargetRefused`].
    pub fn check(&self, url: &Url) -> Result<(), TargetRefused> {
        self.admit(url).map(|_| ())
    }

    /// [`AddressPolicy::check`], and what is to be connected to.
    pub(super) fn admit(&self, url: &Url) -> Result<Origin, TargetRefused> {
        if url.as_str().len() > MAX_URL_BYTES {
            return Err(TargetRefused::TooLong);
        }
        let secure = match url.scheme() {
            "https" => true,
            "http" if self.allow_http => false,
            _ => return Err(TargetRefused::Scheme),
        };
        if !self.allow_userinfo && (!url.username().is_empty() || url.password().is_some()) {
            return Err(TargetRefused::UserInfo);
        }
        let host = url.host().ok_or(TargetRefused::Malformed)?.to_owned();
        let port = url.port_or_known_default().ok_or(TargetRefused::Port)?;
        match &host {
            Host::Ipv4(address) => self.vet(SocketAddr::from((*address, port)))?,
            Host::Ipv6(address) => self.vet(SocketAddr::from((*address, port)))?,
            Host::Domain(name) => self.check_name(name, port)?,
        }
        Ok(Origin { secure, host, port })
    }

    /// Judges an address, whether it was written out or found by resolving.
    ///
    /// # Errors
    /// [`TargetRefused::Address`] or [`TargetRefused::Port`].
    pub fn vet(&self, address: SocketAddr) -> Result<(), TargetRefused> {
        let ip = address.ip();
        if address.port() == 0 {
            return Err(TargetRefused::Port);
        }
        if self.allow_networks.iter().any(|network| network.contains(&ip)) {
            return Ok(());
        }
        if !is_public(ip) {
            return Err(TargetRefused::Address);
        }
        self.check_port(address.port())
    }

    /// Whether only public addresses can pass.
    #[must_use]
    pub const fn is_public_only(&self) -> bool {
        self.allow_networks.is_empty()
    }

    /// Where networks are allowed by list, a name may lead into one: the address decides when it is known.
    fn check_name(&self, name: &str, port: u16) -> Result<(), TargetRefused> {
        if !self.is_public_only() {
            return if port == 0 { Err(TargetRefused::Port) } else { Ok(()) };
        }
        if is_local_name(name) {
            return Err(TargetRefused::Name);
        }
        self.check_port(port)
    }

    fn check_port(&self, port: u16) -> Result<(), TargetRefused> {
        let allowed = match &self.ports {
            Ports::Standard => port == 443 || (port == 80 && self.allow_http),
            Ports::Only(ports) => ports.contains(&port),
            Ports::Any => port != 0,
        };
        if allowed { Ok(()) } else { Err(TargetRefused::Port) }
    }
}

/// Parses a URL and judges it as far as possible without resolving its name. For registering targets; the
/// client applies the same rules again, and to the resolved addresses.
///
/// # Errors
/// [`TargetRefused`].
pub fn check_url(text: &str, policy: &AddressPolicy) -> Result<Url, TargetRefused> {
    if text.len() > MAX_URL_BYTES {
        return Err(TargetRefused::TooLong);
    }
    // The URL standard drops these characters silently; what was registered should be what is asked.
    if text.chars().any(|character| character.is_control() || character == '\\') || text.trim() != text {
        return Err(TargetRefused::Malformed);
    }
    let url = Url::parse(text).map_err(|_| TargetRefused::Malformed)?;
    policy.check(&url)?;
    path_and_query(&url)?;
    Ok(url)
}

/// What goes into the request line.
pub(super) fn path_and_query(url: &Url) -> Result<::http::Uri, TargetRefused> {
    let text = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    text.parse().map_err(|_| TargetRefused::Malformed)
}

/// Who is connected to: the key of a pooled connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    /// Over TLS.
    pub(super) secure: bool,
    /// A name, or an address written out.
    pub(super) host: Host<String>,
    /// Never 0.
    pub(super) port: u16,
}

impl fmt::Display for Origin {
    /// The `Host` header: without the port where it is the scheme's own (RFC 9110 §7.2).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = if self.secure { 443 } else { 80 };
        if self.port == default {
            write!(f, "{}", self.host)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Names that lead to this machine or a private network, by RFC 6761, RFC 6762, RFC 7686, RFC 8375, the
/// reservation of `.internal`, or for want of a dot.
fn is_local_name(name: &str) -> bool {
    const LOCAL: [&str; 6] = ["localhost", "local", "internal", "home.arpa", "onion", "invalid"];
    let name = name.strip_suffix('.').unwrap_or(name);
    let within =
        |zone: &&str| name.strip_suffix(*zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    !name.contains('.') || LOCAL.iter().any(within)
}

/// IPv4 ranges that are not public, or that are used to reach into a platform.
const CLOSED_V4: [Ipv4Net; 17] = [
    v4([0, 0, 0, 0], 8),          // this network, RFC 791
    v4([10, 0, 0, 0], 8),         // private use, RFC 1918
    v4([100, 64, 0, 0], 10),      // carrier-grade NAT, RFC 6598
    v4([127, 0, 0, 0], 8),        // loopback, RFC 1122
    v4([168, 63, 129, 16], 32),   // a cloud's own host services, at a public address
    v4([169, 254, 0, 0], 16),     // link-local and metadata services, RFC 3927
    v4([172, 16, 0, 0], 12),      // private use, RFC 1918
    v4([192, 0, 0, 0], 24),       // protocol assignments, RFC 6890
    v4([192, 0, 2, 0], 24),       // documentation, RFC 5737
    v4([192, 88, 99, 0], 24),     // 6to4 relays, RFC 7526
    v4([192, 168, 0, 0], 16),     // private use, RFC 1918
    v4([198, 18, 0, 0], 15),      // benchmarking, RFC 2544
    v4([198, 51, 100, 0], 24),    // documentation, RFC 5737
    v4([203, 0, 113, 0], 24),     // documentation, RFC 5737
    v4([224, 0, 0, 0], 4),        // multicast, RFC 5771
    v4([240, 0, 0, 0], 4),        // reserved, RFC 1112
    v4([255, 255, 255, 255], 32), // broadcast, RFC 919
];

/// The only IPv6 range that holds global unicast addresses (RFC 4291 §2.4). All others stay closed: `::/8`
/// with its mapped, compatible and translated IPv4 forms, `64:ff9b::/32`, `100::/64`, `5f00::/16`,
/// `fc00::/7`, `fe80::/10`, `fec0::/10`, `ff00::/8`, and what is not assigned.
const OPEN_V6: Ipv6Net = v6([0x2000, 0, 0], 3);

/// Ranges within [`OPEN_V6`] that are not public, or that embed IPv4 addresses.
const CLOSED_V6: [Ipv6Net; 4] = [
    v6([0x2001, 0, 0], 23), // protocol assignments, Teredo and ORCHID among them, RFC 2928
    v6([0x2001, 0x0db8, 0], 32), // documentation, RFC 3849
    v6([0x2002, 0, 0], 16), // 6to4, RFC 3056
    v6([0x3fff, 0, 0], 20), // documentation, RFC 9637
];

const fn v4(octets: [u8; 4], prefix: u8) -> Ipv4Net {
    let [a, b, c, d] = octets;
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(start: [u16; 3], prefix: u8) -> Ipv6Net {
    let [a, b, c] = start;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !CLOSED_V4.iter().any(|network| network.contains(&ip)),
        IpAddr::V6(ip) => {
            OPEN_V6.contains(&ip) && !CLOSED_V6.iter().any(|network| network.contains(&ip)) && !is_isatap(ip)
        }
    }
}

/// ISATAP interface identifiers (RFC 5214 §6.1) embed an IPv4 address under any prefix.
fn is_isatap(ip: Ipv6Addr) -> bool {
    matches!(ip.segments(), [_, _, _, _, 0x0000 | 0x0200, 0x5efe, _, _])
}
