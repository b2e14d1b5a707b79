//! Where to listen or connect.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

use ringport_engine::{SockAddr, socket};

use crate::Error;

/// An IP address with a port, or a Unix socket file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// IPv4 or IPv6.
    Ip(SocketAddr),
    /// A Unix socket, written `unix:PATH`.
    Unix(PathBuf),
}

impl Address {
    /// As the system wants it.
    pub(crate) fn to_system(&self) -> std::io::Result<SockAddr> {
        match self {
            Self::Ip(address) => Ok(socket::ip(*address)),
            Self::Unix(path) => socket::unix(path),
        }
    }

    /// What the system says, where it is one of the kinds we know. An unnamed Unix socket is an empty path.
    pub(crate) fn from_system(address: &SockAddr) -> Self {
        match address.as_socket() {
            Some(address) => Self::Ip(address),
            None => Self::Unix(socket::path(address).map(PathBuf::from).unwrap_or_default()),
        }
    }

    /// `tcp` or `unix`.
    #[must_use]
    pub fn protocol(&self) -> &'static str {
        match self {
            Self::Ip(_) => "tcp",
            Self::Unix(_) => "unix",
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    /// `HOST:PORT`, `[IPv6]:PORT` or `unix:PATH`. A host name is looked up, and its first address taken.
    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |why: String| Error::Address { text: text.to_owned(), why };
        match text.parse::<Destination>()? {
            Destination::Addresses(addresses) => {
                addresses.into_iter().next().ok_or_else(|| bad("there is no address".into()))
            }
            Destination::Host(host) => {
                let mut found = host.to_socket_addrs().map_err(|error| bad(error.to_string()))?;
                found.next().map(Self::Ip).ok_or_else(|| bad("the host has no address".into()))
            }
        }
    }
}

/// Where a client connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Destination {
    /// Whichever of these answers first.
    Addresses(Vec<Address>),
    /// `HOST:PORT`, looked up when the client runs.
    Host(String),
}

impl FromStr for Destination {
    type Err = Error;

    /// As an [`Address`], without looking anything up.
    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |why: String| Error::Address { text: text.to_owned(), why };
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err(bad("the path is empty".into()))
            } else {
                Ok(Address::Unix(path.into()).into())
            };
        }
        if let Ok(address) = text.parse() {
            return Ok(Address::Ip(address).into());
        }
        let Some((host, port)) = text.rsplit_once(':') else { return Err(bad("there is no port".into())) };
        if port.parse::<u16>().is_err() {
            return Err(bad(format!("{port:?} is not a port number")));
        }
        if host.is_empty() {
            return Err(bad("there is no host".into()));
        }
        Ok(Self::Host(text.to_owned()))
    }
}

impl From<Address> for Destination {
    fn from(address: Address) -> Self {
        Self::Addresses(vec![address])
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// What `listen` and `connect` accept as an address. Text that does not parse is reported when the server starts.
pub trait IntoAddress {
    /// The address.
    ///
    /// # Errors
    ///
    /// [`Error::Address`] if it is none.
    fn into_address(self) -> Result<Address, Error>;

    /// All of its addresses, for a client.
    ///
    /// # Errors
    ///
    /// [`Error::Address`] if it is none.
    fn into_destination(self) -> Result<Destination, Error>
    where
        Self: Sized,
    {
        self.into_address().map(Destination::from)
    }
}

impl IntoAddress for Address {
    fn into_address(self) -> Result<Address, Error> {
        Ok(self)
    }
}

impl IntoAddress for SocketAddr {
    fn into_address(self) -> Result<Address, Error> {
        Ok(self.into())
    }
}

impl IntoAddress for &str {
    fn into_address(self) -> Result<Address, Error> {
        self.parse()
    }

    fn into_destination(self) -> Result<Destination, Error> {
        self.parse()
    }
}

impl IntoAddress for &String {
    fn into_address(self) -> Result<Address, Error> {
        self.parse()
    }

    fn into_destination(self) -> Result<Destination, Error> {
        self.parse()
    }
}

/// A server listens on the first; a client connects to whichever answers first.
impl IntoAddress for Vec<SocketAddr> {
    fn into_address(self) -> Result<Address, Error> {
        let none = || Error::Address { text: "an empty list".into(), why: "there is no address".into() };
        self.first().map(|address| Address::Ip(*address)).ok_or_else(none)
    }

    fn into_destination(self) -> Result<Destination, Error> {
        self.clone().into_address()?;
        Ok(Destination::Addresses(self.into_iter().map(Address::Ip).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_and_bad_ones_say_why() {
        assert_eq!("127.0.0.1:80".parse::<Address>().unwrap().to_string(), "127.0.0.1:80");
        assert_eq!("[::1]:80".parse::<Address>().unwrap().to_string(), "[::1]:80");
        assert_eq!("unix:/tmp/x".parse::<Address>().unwrap(), Address::Unix("/tmp/x".into()));
        for (text, why) in [
            ("127.0.0.1", "no port"),
            ("127.0.0.1:x", "not a port number"),
            ("127.0.0.1:70000", "not a port number"),
            (":80", "no host"),
            ("unix:", "path is empty"),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(text), "{error}");
        }
    }
}
