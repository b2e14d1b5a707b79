//! The traits of the ecosystem, each behind a feature of its own.
//!
//! | feature | what | for |
//! |---|---|---|
//! | `futures-io` | `AsyncRead`, `AsyncWrite` | [`Stream`](super::Stream), its halves |
//! | `tokio` | `AsyncRead`, `AsyncWrite` | [`Stream`](super::Stream), its halves |
//! | `hyper` | `rt::{Read, Write, Timer, Executor}` | [`Stream`](super::Stream), `TaskExecutor`, `TaskTimer` |
//! | `tower-service` | a service for each connection | [`Server`](crate::Server) |
//!
//! Reading through these traits copies, since their callers bring the buffers; `recv` and `send` do not.

#[cfg(feature = "futures-io")]
mod futures;
#[cfg(feature = "hyper")]
pub mod hyper;
#[cfg(feature = "tokio")]
mod tokio;
#[cfg(feature = "tower-service")]
mod tower;

#[cfg(any(feature = "futures-io", feature = "tokio"))]
mod parts {
    //! What all these traits are made of.

    use std::io::{self, IoSlice};
    use std::task::{Context, Poll};

    use crate::aio::{OwnedReader, OwnedWriter, Stream};

    /// Something with bytes that arrived.
    pub(crate) trait Source {
        fn source_read(&mut self, cx: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>>;
    }

    /// Something that sends.
    pub(crate) trait Sink {
        fn sink_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>>;
        /// The same of several buffers, as far as there is room.
        fn sink_write_vectored(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>>;
        /// Waits until the kernel has taken everything.
        fn sink_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
        /// Sends no more, then the same.
        fn sink_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    }

    macro_rules! parts {
        ($type:ty, source) => {
            impl Source for $type {
                fn source_read(&mut self, cx: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
                    self.poll_read(cx, to)
                }
            }
        };
        ($type:ty, sink) => {
            impl Sink for $type {
                fn sink_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
                    self.poll_write(cx, data)
                }

                fn sink_write_vectored(
                    &mut self,
                    cx: &mut Context<'_>,
                    pieces: &[IoSlice<'_>],
                ) -> Poll<io::Result<usize>> {
                    self.poll_write_vectored(cx, pieces)
                }

                fn sink_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                    self.poll_flush(cx)
                }

                fn sink_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                    self.poll_shutdown(cx)
                }
            }
        };
    }

    parts!(Stream, source);
    parts!(Stream, sink);
    parts!(OwnedReader, source);
    parts!(OwnedWriter, sink);
}
