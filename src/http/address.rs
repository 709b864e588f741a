//! Addresses: where a request comes from, also through proxies.

use std::{
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use http::HeaderMap;

/// Addresses that have their first bits in common. IPv4 stands in IPv6 as it is mapped there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    base: u128,
    mask: u128,
}

/// Text that names no network.
#[derive(Debug, thiserror::Error)]
#[error("write it as an address or a network, as in 10.0.0.7 or 10.0.0.0/8")]
pub struct BadNetwork;

impl FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let (address, bits) = text.trim().split_once('/').map_or((text.trim(), None), |(a, bits)| (a, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| BadNetwork)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits: u32 = bits.map_or(Ok(most), str::parse).map_err(|_| BadNetwork)?;
        if bits > most {
            return Err(BadNetwork);
        }
        let mask = u128::MAX.checked_shl(most - bits).unwrap_or(0);
        Ok(Self { base: number(address) & mask, mask })
    }
}

impl Network {
    /// Whether an address is one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        number(address) & self.mask == self.base
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// By what an address is counted: one that has an IPv6 address has all of its /64.
pub(super) fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        address @ IpAddr::V4(_) => address,
    }
}

/// Where a request comes from: its connection's peer; and if that is a trusted proxy, the address that it was asked
/// from, and so on. Anybody can write the header: what stands left of the first address that is not trusted counts for
/// nothing.
pub(super) fn origin(peer: IpAddr, headers: &HeaderMap, trusted: &[Network]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut origin = peer;
    let lists = headers.get_all("x-forwarded-for").iter().rev().filter_map(|list| list.to_str().ok());
    for hop in lists.flat_map(|list| list.rsplit(',')) {
        if !is_trusted(origin) {
            break;
        }
        let Some(address) = address_of(hop.trim()) else { break };
        origin = address;
    }
    origin
}

/// An address as proxies write it: alone, or with a port.
fn address_of(text: &str) -> Option<IpAddr> {
    let alone = || text.trim_start_matches('[').trim_end_matches(']').parse().ok();
    text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip()).or_else(alone)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_are_read_and_hold_what_they_say() {
        for (network, inside, outside) in [
            ("10.0.0.7", "10.0.0.7", "10.0.0.8"),
            ("10.1.0.0/16", "10.1.255.255", "10.2.0.0"),
            ("10.1.2.3/16", "10.1.0.1", "10.0.255.255"),
            ("0.0.0.0/0", "255.255.255.255", "2001:db8::1"),
            ("::/0", "10.0.0.1", ""),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("::1", "::1", "::2"),
            ("127.0.0.0/8", "::ffff:127.0.0.1", "::1"),
        ] {
            let read: Network = network.parse().unwrap();
            assert!(read.contains(ip(inside)), "{network} has {inside}");
            assert!(outside.is_empty() || !read.contains(ip(outside)), "{network} has no {outside}");
        }
        for bad in ["", "10.0.0", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/-1", "host", "10.0.0.1:80"] {
            assert!(bad.parse::<Network>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()];
        let seen = |peer: &str, lists: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for list in lists {
                headers.append("x-forwarded-for", http::HeaderValue::from_static(list));
            }
            origin(ip(peer), &headers, &trusted).to_string()
        };
        assert_eq!(seen("192.0.2.1", &["198.51.100.9"]), "192.0.2.1", "anybody can write that");
        assert_eq!(seen("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(seen("10.0.0.1", &["198.51.100.9"]), "198.51.100.9");
        assert_eq!(
            seen("10.0.0.1", &["1.1.1.1, 198.51.100.9, 10.9.9.9"]),
            "198.51.100.9",
            "the right-most untrusted"
        );
        assert_eq!(seen("10.0.0.1", &["1.1.1.1", "198.51.100.9,10.9.9.9"]), "198.51.100.9", "over several headers");
        assert_eq!(seen("10.0.0.1", &["10.2.2.2, 10.1.1.1"]), "10.2.2.2", "all are trusted: the first");
        assert_eq!(seen("10.0.0.1", &["1.1.1.1, nonsense, 10.1.1.1"]), "10.1.1.1", "no further than can be read");
        assert_eq!(seen("::1", &["[2001:db8::5]:4711"]), "2001:db8::5");
        assert_eq!(seen("::1", &["198.51.100.9:4711"]), "198.51.100.9");
        assert_eq!(seen("::ffff:10.0.0.1", &["198.51.100.9"]), "198.51.100.9");
    }

    #[test]
    fn ipv6_counts_by_its_64() {
        assert_eq!(counted(ip("2001:db8:1:2:3:4:5:6")), ip("2001:db8:1:2::"));
        assert_eq!(counted(ip("::ffff:192.0.2.1")), ip("192.0.2.1"));
        assert_eq!(counted(ip("192.0.2.1")), ip("192.0.2.1"));
    }
}
