//! `futures_io::AsyncRead` and `AsyncWrite`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_io::{AsyncRead, AsyncWrite};

use super::parts::{Sink, Source};
use crate::aio::{OwnedReader, OwnedWriter, Stream};

macro_rules! read {
    ($type:ty) => {
        impl AsyncRead for $type {
            fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
                self.source_read(cx, to)
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

            fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.sink_flush(cx)
            }

            fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.sink_close(cx)
            }
        }
    };
}

read!(Stream);
read!(OwnedReader);
write!(Stream);
write!(OwnedWriter);
