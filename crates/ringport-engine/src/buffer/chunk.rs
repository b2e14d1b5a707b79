//! [`Chunk`]: one piece of what is to be sent.

use bytes::Bytes;

use super::Buf;

/// Bytes to send, wherever they live. Made with `From` from what the caller has; none of them copies.
#[derive(Debug)]
#[non_exhaustive]
pub enum Chunk {
    /// A buffer of this worker's pool, usually one that was just received.
    Buf(Buf),
    /// Shared or static bytes.
    Bytes(Bytes),
}

impl Chunk {
    /// Number of bytes left to send.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes left to send. Their address does not change when the chunk is moved.
    #[must_use]
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Buf(buf) => buf,
            Self::Bytes(bytes) => bytes,
        }
    }

    /// Drops the first `count` bytes.
    ///
    /// # Panics
    ///
    /// If there are fewer.
    pub fn advance(&mut self, count: usize) {
        match self {
            Self::Buf(buf) => buf.advance(count),
            Self::Bytes(bytes) => bytes::Buf::advance(bytes, count),
        }
    }

    /// The bytes as [`Bytes`], which may leave the thread.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Buf(buf) => buf.into_bytes(),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl From<Buf> for Chunk {
    fn from(buf: Buf) -> Self {
        Self::Buf(buf)
    }
}

impl From<Bytes> for Chunk {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<Vec<u8>> for Chunk {
    fn from(vec: Vec<u8>) -> Self {
        Self::Bytes(vec.into())
    }
}

impl From<String> for Chunk {
    fn from(string: String) -> Self {
        Self::Bytes(string.into())
    }
}

impl From<&'static [u8]> for Chunk {
    fn from(data: &'static [u8]) -> Self {
        Self::Bytes(Bytes::from_static(data))
    }
}

impl<const N: usize> From<&'static [u8; N]> for Chunk {
    fn from(data: &'static [u8; N]) -> Self {
        Self::Bytes(Bytes::from_static(data))
    }
}

impl From<&'static str> for Chunk {
    fn from(data: &'static str) -> Self {
        Self::Bytes(Bytes::from_static(data.as_bytes()))
    }
}
