//! [`FileRange`]: a part of a file to be sent.

use std::fs::File;
use std::io;
use std::sync::Arc;

use crate::engine::platform;

/// A part of an open file, sent in order with all other data.
///
/// On Linux, macOS, FreeBSD and with iocp the kernel moves the bytes from the file to the socket, and none of them passes through this
/// process; elsewhere they are read into slots of the pool. Each range counts with its full length against the limits of a
/// connection, although it takes no memory: send a large file in parts.
///
/// The length is a promise. When the file turns out to be shorter, the connection is closed with
/// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof); what was not sent comes back.
///
/// Reading a file can block the worker until the disk answers. And unlike any other send, the kernel raises SIGPIPE
/// when the peer is gone (sendfile(2) knows no `MSG_NOSIGNAL`): every Rust program ignores that signal from its start, a
/// program in another language that uses this library must do the same.
#[derive(Clone, Debug)]
pub struct FileRange {
    file: Arc<File>,
    offset: u64,
    length: usize,
}

impl FileRange {
    /// `length` bytes from `offset`. The file stays open until the last range of it is gone; its position is neither used
    /// nor changed.
    #[must_use]
    pub fn new(file: impl Into<Arc<File>>, offset: u64, length: usize) -> Self {
        Self { file: file.into(), offset, length }
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Where the range begins.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes left in the range.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Drops the first `count` bytes.
    ///
    /// # Panics
    ///
    /// If there are fewer.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.length, "cannot advance by {count} in a range of {} bytes", self.length);
        self.offset += count as u64;
        self.length -= count;
    }

    /// Reads as many of its first bytes as one call finds. At least one, unless `memory` or the range is empty.
    ///
    /// # Errors
    ///
    /// What pread(2) answers, and `UnexpectedEof` where the file is shorter than the range.
    pub fn read(&self, memory: &mut [u8]) -> io::Result<usize> {
        let count = memory.len().min(self.length);
        loop {
            match platform::read_at(&self.file, &mut memory[..count], self.offset) {
                Ok(0) if count > 0 => return Err(truncated()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                answer => return answer,
            }
        }
    }
}

/// The error of a file that is shorter than was promised.
pub(crate) fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file is shorter than the range to be sent")
}
