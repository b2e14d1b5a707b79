//! Who may come in: connections of one address, and connections a second, over all workers of a server.
//!
//! Asked once for each accepted connection and never for a message, so that a lock is good enough.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use ringport_engine::{SockAddr, Socket};

use crate::session::{Bucket, Rate};

/// The door of a server.
#[derive(Debug)]
pub(crate) struct Gate {
    per_address_max: Option<usize>,
    addresses: Mutex<BTreeMap<IpAddr, usize>>,
    rate: Option<(Rate, Mutex<Bucket>)>,
    /// When the first connection came.
    origin: OnceLock<Instant>,
}

/// A connection that counts for its address until this is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    gate: Arc<Gate>,
    address: IpAddr,
}

impl Gate {
    pub(crate) fn new(per_address_max: Option<usize>, rate: Option<Rate>) -> Arc<Self> {
        let rate = rate.map(|rate| (rate, Mutex::new(Bucket::default())));
        Arc::new(Self { per_address_max, addresses: Mutex::default(), rate, origin: OnceLock::new() })
    }

    /// Counts a connection for its address. `Ok(None)` if addresses are not counted or it has none.
    ///
    /// # Errors
    ///
    /// If there are as many already as there may be.
    pub(crate) fn admit(self: &Arc<Self>, socket: &Socket) -> Result<Option<Permit>, ()> {
        let Some(max) = self.per_address_max else { return Ok(None) };
        let address = socket.peer_addr().ok().as_ref().and_then(SockAddr::as_socket);
        let Some(address) = address.map(|address| who(address.ip())) else { return Ok(None) };
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let count = addresses.entry(address).or_default();
        if *count >= max {
            return Err(());
        }
        *count += 1;
        Ok(Some(Permit { gate: Arc::clone(self), address }))
    }

    /// Whether one more connection may come in now.
    pub(crate) fn is_in_time(&self, now: Instant) -> bool {
        let Some((rate, bucket)) = &self.rate else { return true };
        let now = now.saturating_duration_since(*self.origin.get_or_init(|| now));
        bucket.lock().unwrap_or_else(PoisonError::into_inner).spend_if_any(*rate, now)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut addresses = self.gate.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = addresses.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}

/// Whose address it is. A site has at least a whole network of IPv6 addresses with a common first half (RFC 6177).
pub(super) fn who(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_addresses_of_one_network_are_one_peer() {
        let who = |text: &str| who(text.parse().expect("an address")).to_string();
        assert_eq!(who("192.0.2.7"), "192.0.2.7");
        assert_eq!(who("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }
}
