//! Which targets are refused, in every spelling we know of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use outside::http::TargetRefused::{self, Address, Malformed, Name, Port, Scheme, TooLong, UserInfo};
use outside::http::{AddressPolicy, Ports, check_url};
use proptest::prelude::*;

fn verdict(url: &str) -> Result<(), TargetRefused> {
    check_url(url, &AddressPolicy::public()).map(|_| ())
}

#[test]
fn every_spelling_of_a_closed_address_is_refused() {
    let spellings = [
        // IPv4, plainly.
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "100.127.255.255",
        "169.254.169.254",
        "169.254.170.2",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "168.63.129.16",
        // IPv4, written so that a textual filter misses it.
        "127.1",
        "127.0.1",
        "0",
        "2130706433",
        "017700000001",
        "0x7f000001",
        "0x7f.1",
        "0x7F.0x0.0x0.0x1",
        "0177.0.0.1",
        "0177.1",
        "00000177.0.0.1.",
        "127.0.0.1.",
        "127.1.",
        "2852039166",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
        "①②⑦.⓪.⓪.①",
        "１２７.０.０.１",
        "127。0。0。1",
        "%31%32%37.0.0.1",
        "127%2e0.0.1",
        "0x7f.0.0.1",
        "0000.0",
        // IPv6: itself, local and multicast.
        "[::]",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[fe80::1]",
        "[febf::1]",
        "[fec0::1]",
        "[fc00::1]",
        "[fd00:ec2::254]",
        "[ff02::1]",
        "[100::1]",
        "[5f00::1]",
        "[2001:db8::1]",
        "[3fff::1]",
        "[4000::1]",
        "[::2]",
        // IPv6: holding an IPv4 address.
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::ffff:8.8.8.8]",
        "[::127.0.0.1]",
        "[::ffff:0:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b::8.8.8.8]",
        "[64:ff9b:1::a00:1]",
        "[2002:7f00:1::]",
        "[2002:808:808::1]",
        "[2001::1]",
        "[2001:0:4136:e378:8000:63bf:3fff:fdd2]",
        "[2600::5efe:7f00:1]",
        "[2600::200:5efe:a00:1]",
    ];
    assert!(spellings.len() >= 60);
    for host in spellings {
        assert_eq!(verdict(&format!("https://{host}/hook")), Err(Address), "{host}");
    }
}

#[test]
fn names_that_lead_home_are_refused_by_their_form() {
    for host in [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "a.localhost",
        "a.b.localhost.",
        "printer.local",
        "metadata.google.internal",
        "db.internal.",
        "nas.home.arpa",
        "router",
        "router.",
        "x.onion",
        "host.invalid",
        "ｌｏｃａｌｈｏｓｔ",
        "local%68ost",
    ] {
        assert_eq!(verdict(&format!("https://{host}/")), Err(Name), "{host}");
    }
}

#[test]
fn forms_that_mislead_are_refused() {
    let table = [
        ("", Malformed),
        ("merchant.example/hook", Malformed),
        ("//merchant.example", Malformed),
        ("https://", Malformed),
        ("https:///", Malformed),
        ("https:///?", Malformed),
        ("https://[fe80::1%25eth0]/", Malformed),
        ("https://[::1", Malformed),
        ("https://256.256.256.256/", Malformed),
        ("https://1.2.3.4.5/", Malformed),
        ("https://merchant.example:99999/", Malformed),
        ("https://merchant.exa mple/", Malformed),
        ("https://merchant.example\\@127.0.0.1/", Malformed),
        ("https:\\\\127.0.0.1\\", Malformed),
        (" https://merchant.example/", Malformed),
        ("https://merchant.example/\r\nHost: evil", Malformed),
        ("https://mer\tchant.example/", Malformed),
        ("https://merchant.example/\0", Malformed),
        ("http://merchant.example/", Scheme),
        ("ftp://merchant.example/", Scheme),
        ("file:///etc/passwd", Scheme),
        ("gopher://merchant.example/_x", Scheme),
        ("javascript:alert(1)", Scheme),
        ("ws://merchant.example/", Scheme),
        ("https://user@merchant.example/", UserInfo),
        ("https://user:pass@merchant.example/", UserInfo),
        ("https://:pass@merchant.example/", UserInfo),
        ("https://merchant.example:443@127.0.0.1/", UserInfo),
        ("https://merchant.example%00@127.0.0.1/", UserInfo),
        ("https://merchant.example:22/", Port),
        ("https://merchant.example:25/", Port),
        ("https://merchant.example:6379/", Port),
        ("https://merchant.example:8443/", Port),
        ("https://merchant.example:80/", Port),
        ("https://merchant.example:0/", Port),
        ("https://8.8.8.8:53/", Port),
        ("https://evil.example#@127.0.0.1/", Malformed),
    ];
    for (url, why) in table.iter().take(table.len() - 1) {
        assert_eq!(verdict(url), Err(*why), "{url:?}");
    }
    assert_eq!(verdict(&format!("https://merchant.example/{}", "a".repeat(64 * 1024))), Err(TooLong));
    // What follows `#` is a fragment, whatever it looks like: the host is the one before it.
    let url = check_url("https://evil.example#@127.0.0.1/", &AddressPolicy::public()).unwrap();
    assert_eq!(url.host_str(), Some("evil.example"));
}

#[test]
fn public_targets_are_allowed() {
    for url in [
        "https://merchant.example/hook",
        "https://merchant.example./",
        "https://merchant.example:443/?a=b#c",
        "https://8.8.8.8/",
        "https://[2606:4700:4700::1111]/",
        "https://bücher.example/",
        "HTTPS://MERCHANT.EXAMPLE/",
        "https://localhost.example/",
        "https://internal.example/",
        "https://11.0.0.1/",
        "https://172.32.0.1/",
        "https://192.169.0.1/",
        "https://100.128.0.1/",
        "https://merchant.example/%00",
        "https://merchant.example/a|b^c`{d}",
    ] {
        assert_eq!(verdict(url), Ok(()), "{url}");
    }
}

#[test]
fn a_list_opens_what_it_names_and_nothing_by_embedding() {
    let policy = AddressPolicy {
        allow_networks: vec!["127.0.0.0/8".parse().unwrap(), "fd00:1::/32".parse().unwrap()],
        allow_http: true,
        ..AddressPolicy::public()
    };
    for open in [
        "http://127.0.0.1:9999/",
        "http://2130706433:1/",
        "http://[fd00:1::5]:8080/",
        "http://localhost:8080/",
        "http://router:3000/",
    ] {
        assert!(check_url(open, &policy).is_ok(), "{open}");
    }
    let closed = [
        ("http://10.0.0.1/", Address),
        ("http://169.254.169.254/", Address),
        ("http://[::ffff:127.0.0.1]/", Address),
        ("http://[::127.0.0.1]/", Address),
        ("http://[64:ff9b::7f00:1]/", Address),
        ("http://[2002:7f00:1::]/", Address),
        ("http://[::1]/", Address),
        ("http://[fd00:2::5]/", Address),
        ("http://8.8.8.8:22/", Port),
        ("http://127.0.0.1:0/", Port),
        ("http://localhost:0/", Port),
    ];
    for (url, why) in closed {
        assert_eq!(check_url(url, &policy).map(|_| ()), Err(why), "{url}");
    }
    // A name may lead into an open network or elsewhere: the address decides.
    assert_eq!(policy.vet("127.0.0.1:8080".parse().unwrap()), Ok(()));
    assert_eq!(policy.vet("8.8.8.8:8080".parse().unwrap()), Err(Port));
    assert_eq!(policy.vet("10.0.0.1:8080".parse().unwrap()), Err(Address));
}

#[test]
fn ports_and_schemes_follow_the_policy() {
    let policy = |ports| AddressPolicy { ports, ..AddressPolicy::public() };
    let check = |url: &str, policy: &AddressPolicy| check_url(url, policy).map(|_| ());
    assert_eq!(check("https://m.example:8443/", &policy(Ports::Only(vec![443, 8443]))), Ok(()));
    assert_eq!(check("https://m.example:8444/", &policy(Ports::Only(vec![443, 8443]))), Err(Port));
    assert_eq!(check("https://m.example:1/", &policy(Ports::Any)), Ok(()));
    let plain = AddressPolicy { allow_http: true, ..AddressPolicy::public() };
    assert_eq!(check("http://m.example/", &plain), Ok(()));
    assert_eq!(check("http://user@m.example/", &plain), Err(UserInfo));
    let operator = AddressPolicy::unrestricted();
    for url in [
        "http://user:key@10.0.0.1:8545/v3/abc",
        "http://[::ffff:127.0.0.1]:1/",
        "http://node:8545",
        "https://localhost",
    ] {
        assert_eq!(check(url, &operator), Ok(()), "{url}");
    }
    assert_eq!(check("ftp://10.0.0.1/", &operator), Err(Scheme));
}

/// The ranges as the registries print them, apart from the table under test.
const CLOSED: [&str; 40] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "255.255.255.255/32",
    "::/128",
    "::1/128",
    "::/96",
    "::ffff:0:0/96",
    "::ffff:0:0:0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "100:0:0:1::/64",
    "2001::/32",
    "2001:2::/48",
    "2001:10::/28",
    "2001:20::/28",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
    "4000::/2",
    "::/8",
    "2001::/23",
];

fn within(network: &IpNet, chance: u128) -> IpAddr {
    match network {
        IpNet::V4(network) => {
            let host = u32::try_from(chance & u128::from(u32::MAX)).unwrap() & u32::from(network.hostmask());
            Ipv4Addr::from(u32::from(network.network()) | host).into()
        }
        IpNet::V6(network) => {
            Ipv6Addr::from(u128::from(network.network()) | (chance & u128::from(network.hostmask()))).into()
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn no_address_of_a_closed_network_passes(network in 0..CLOSED.len(), chance: u128) {
        let network: IpNet = CLOSED[network].parse().unwrap();
        let ip = within(&network, chance);
        let policy = AddressPolicy { ports: Ports::Any, ..AddressPolicy::public() };
        prop_assert_eq!(policy.vet(SocketAddr::new(ip, 443)), Err(Address));
    }

    #[test]
    fn any_ipv4_address_passes_only_outside_the_closed_networks(bits: u32) {
        let ip = IpAddr::V4(Ipv4Addr::from(bits));
        let closed = CLOSED.iter().any(|network| network.parse::<IpNet>().unwrap().contains(&ip))
            || ip == IpAddr::from([168, 63, 129, 16]);
        prop_assert_eq!(AddressPolicy::public().vet(SocketAddr::new(ip, 443)).is_err(), closed);
    }

    #[test]
    fn no_ipv6_form_of_a_closed_ipv4_address_passes(network in 0usize..16, chance: u128, prefix: u64) {
        let IpAddr::V4(v4) = within(&CLOSED[network].parse().unwrap(), chance) else { unreachable!() };
        let v4 = u128::from(u32::from(v4));
        let forms = [
            v4,
            0xffff << 32 | v4,
            0xffff << 48 | v4,
            0x0064_ff9b << 96 | v4,
            0x0064_ff9b_0001 << 80 | v4,
            0x2002 << 112 | v4 << 80 | u128::from(prefix),
            0x2001 << 112 | u128::from(prefix) << 32 | !v4 & 0xffff_ffff,
            u128::from(prefix) << 64 | 0x5efe << 32 | v4,
            u128::from(prefix) << 64 | 0x0200_5efe << 32 | v4,
        ];
        for form in forms {
            let ip = Ipv6Addr::from(form);
            let url = format!("https://[{ip}]/");
            prop_assert_eq!(verdict(&url), Err(Address), "{}", url);
        }
    }

    #[test]
    fn no_text_makes_the_check_panic(text in "\\PC*", host in "[0-9a-fx.:\\[\\]%@]{0,40}") {
        let _either = check_url(&text, &AddressPolicy::public());
        if let Ok(url) = check_url(&format!("https://{host}/"), &AddressPolicy::public()) {
            prop_assert!(!url.host_str().unwrap().is_empty());
        }
    }
}
