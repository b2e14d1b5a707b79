//! tokio's `AsyncRead` and `AsyncWrite`. They need no runtime of tokio's.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::parts::{Sink, Source};
use crate::aio::{OwnedReader, OwnedWriter, Stream};

macro_rules! read {
    ($type:ty) => {
        impl AsyncRead for $type {
            fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                let count = ready!(self.source_read(cx, to.initialize_unfilled()))?;
                to.advance(count);
                Poll::Ready(Ok(()))
            }
        }
    };
}

macro_rules! write {
    ($type:ty) => {
        impl AsyncWrite for $type {
            fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
                self.sink_write(cx, data)
            }

            fn poll_write_vectored(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                pieces: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                self.sink_write_vectored(cx, pieces)
            }

            fn is_write_vectored(&self) -> bool {
                true
            }

            fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.sink_flush(cx)
            }

            fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.sink_close(cx)
            }
        }
    };
}

read!(Stream);
read!(OwnedReader);
write!(Stream);
write!(OwnedWriter);
