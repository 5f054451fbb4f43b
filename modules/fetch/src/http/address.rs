//! Which addresses belong to the open internet.

use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Whether an address belongs to the open internet: not to this machine, to a private network, or
/// to a range that is kept for other purposes. An IPv6 address that stands for an IPv4 address
/// counts as that one.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => match v4_behind(address) {
            Some(address) => is_public_v4(address),
            None => is_public_v6(address),
        },
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let octets = address.octets();
    let is_kept = match octets {
        // This network, carriers' networks, IETF's own, former 6to4 relays, measurements.
        [0, ..] | [100, 64..=127, ..] | [192, 0, 0, _] | [192, 88, 99, _] | [198, 18..=19, ..] => {
            true
        }
        // Multicast, the future, everyone.
        [224..=255, ..] => true,
        _ => false,
    };
    !(is_kept
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation())
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // Teredo, benchmarks and ORCHID, documentation.
        [0x2001, 0..=0x01FF, ..] | [0x2001, 0xDB8, ..] | [0x3FFF, 0..=0x0FFF, ..] => false,
        // Everything else that is public begins with these three bits.
        [first, ..] => first & 0xE000 == 0x2000,
    }
}

/// Returns the IPv4 address that an IPv6 address stands for: mapped, compatible, of NAT64 or 6to4.
fn v4_behind(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let from = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0 | 0xFFFF, high, low] | [0x64, 0xFF9B, 0, 0, 0, 0, high, low] => {
            Some(from(high, low))
        }
        [0x2002, high, low, ..] => Some(from(high, low)),
        _ => None,
    }
}

/// Looks names up, and returns only addresses that may be connected to.
#[derive(Debug)]
pub(super) struct CheckedNames {
    /// Whether private addresses may be.
    pub(super) allow_private: bool,
}

/// All addresses of a name are private.
#[derive(Debug)]
pub(super) struct PrivateName;

impl Display for PrivateName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the name belongs to a private address")
    }
}

impl std::error::Error for PrivateName {}

impl Resolve for CheckedNames {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let all = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let all: Vec<SocketAddr> = all.collect();
            let allowed: Vec<SocketAddr> =
                all.iter().filter(|one| allow_private || is_public(one.ip())).copied().collect();
            if allowed.is_empty() && !all.is_empty() {
                return Err(PrivateName.into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::is_public;

    #[test]
    fn addresses_of_the_open_internet_are_public() {
        for address in
            ["8.8.8.8", "1.1.1.1", "100.63.0.1", "172.32.0.1", "2606:4700::1111", "2a00::1"]
        {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
        assert!(is_public("::ffff:8.8.8.8".parse().unwrap()));
        assert!(is_public("64:ff9b::808:808".parse().unwrap()));
    }

    #[test]
    fn addresses_of_machines_and_private_networks_are_not() {
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.0.0.1",
            "198.18.0.1",
            "203.0.113.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001:db8::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "2002:7f00:1::",
            "2001::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }
}
