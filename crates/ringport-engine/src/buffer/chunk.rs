//! [`Chunk`]: one piece of what is to be sent.

use bytes::Bytes;

use super::{Buf, FileRange};

/// Bytes to send, wherever they live. Made with `From` from what the caller has; none of them copies.
#[derive(Debug)]
#[non_exhaustive]
pub enum Chunk {
    /// A buffer of this worker's pool, usually one that was just received.
    Buf(Buf),
    /// Shared or static bytes.
    Bytes(Bytes),
    /// A part of a file. Boxed, since few chunks are one and every chunk has the size of the largest.
    File(Box<FileRange>),
    /// One byte of urgent data (TCP's out-of-band byte, see tcp(7)). Made by [`Chunk::urgent`]; boxed, since its address must
    /// not change.
    Urgent(Box<u8>),
}

impl Chunk {
    /// Number of bytes left to send.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        match self {
            Self::Buf(buf) => buf.len(),
            Self::Bytes(bytes) => bytes.len(),
            other => other.len_alone(),
        }
    }

    /// The length of the other kinds, apart: every message asks for the length of a buffer.
    #[inline(never)]
    fn len_alone(&self) -> usize {
        match self {
            Self::File(range) => range.len(),
            inner => inner.as_slice().len(),
        }
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes left to send that lie in memory: none of a file range. Their address does not change when the chunk is
    /// moved.
    #[must_use]
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Buf(buf) => buf,
            Self::Bytes(bytes) => bytes,
            Self::File(_) => &[],
            Self::Urgent(byte) => std::slice::from_ref(byte),
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
            Self::File(range) => range.advance(count),
            // A chunk of one byte that was sent is an empty one.
            Self::Urgent(_) if count == 1 => *self = Self::Bytes(Bytes::new()),
            Self::Urgent(_) => assert_eq!(count, 0, "an urgent byte is one byte"),
        }
    }

    /// The bytes as [`Bytes`], which may leave the thread. A file range has none in memory and gives none.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Buf(buf) => buf.into_bytes(),
            Self::Bytes(bytes) => bytes,
            Self::File(_) => Bytes::new(),
            Self::Urgent(byte) => Bytes::copy_from_slice(&[*byte]),
        }
    }

    /// A byte that goes out as urgent data, in order with all other. The peer learns that something urgent is coming as soon
    /// as its system does, and finds the byte at the mark.
    #[must_use]
    pub fn urgent(byte: u8) -> Self {
        Self::Urgent(Box::new(byte))
    }

    /// Whether it needs a call of its own.
    #[inline]
    pub(crate) fn is_alone(&self) -> bool {
        matches!(self, Self::File(_) | Self::Urgent(_))
    }
}

impl From<FileRange> for Chunk {
    fn from(range: FileRange) -> Self {
        Self::File(Box::new(range))
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
