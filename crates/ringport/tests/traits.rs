//! Streams through the traits of the ecosystem: `cargo test --package ringport --all-features --test traits`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use ringport::aio::{self, Listener};
use ringport::{Bytes, Server, Stream, block_on};

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(31) ^ (at >> 8)) as u8).collect()
}

/// Runs `server` for one connection and `client` at its other end.
fn pair<S, C>(server: impl FnOnce(Stream) -> S + 'static, client: impl FnOnce(Stream) -> C + 'static)
where
    S: Future<Output = io::Result<()>> + 'static,
    C: Future<Output = io::Result<()>> + 'static,
{
    block_on(async move {
        let mut listener = Listener::bind("127.0.0.1:0").expect("it listens");
        let to = listener.address().clone();
        let serving = aio::spawn(async move { server(listener.accept().await?).await });
        client(aio::connect(to).await.expect("it accepts")).await.expect("the client's part");
        serving.await.expect("no panic").expect("the server's part");
    })
    .expect("an engine works");
}

#[test]
fn tokio_copies_both_ways() {
    let server = |stream: Stream| async move {
        let (mut reader, mut writer) = stream.split();
        tokio::io::copy(&mut reader, &mut writer).await?;
        tokio::io::AsyncWriteExt::shutdown(&mut writer).await
    };
    pair(server, |stream| async move {
        let data = pattern(1_000_000);
        let (mut reader, mut writer) = stream.split();
        let sent = data.clone();
        let sending = aio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut writer, &sent).await?;
            tokio::io::AsyncWriteExt::shutdown(&mut writer).await
        });
        let mut back = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut back).await?;
        sending.await??;
        assert!(back == data, "{} bytes", back.len());
        Ok(())
    });
}

#[test]
fn futures_read_lines_and_close() {
    let server = |stream: Stream| async move {
        let (reader, mut writer) = stream.split();
        let mut lines = futures_util::io::BufReader::new(reader);
        let mut line = String::new();
        while futures_util::io::AsyncBufReadExt::read_line(&mut lines, &mut line).await? > 0 {
            futures_util::io::AsyncWriteExt::write_all(&mut writer, line.to_uppercase().as_bytes()).await?;
            futures_util::io::AsyncWriteExt::flush(&mut writer).await?;
            line.clear();
        }
        futures_util::io::AsyncWriteExt::close(&mut writer).await
    };
    pair(server, |mut stream| async move {
        let pieces = [io::IoSlice::new(b"one"), io::IoSlice::new(b""), io::IoSlice::new(b"\ntwo\n")];
        assert_eq!(futures_util::io::AsyncWriteExt::write_vectored(&mut stream, &pieces).await?, 8);
        futures_util::io::AsyncWriteExt::close(&mut stream).await?;
        let mut back = String::new();
        futures_util::io::AsyncReadExt::read_to_string(&mut stream, &mut back).await?;
        assert_eq!(back, "ONE\nTWO\n");
        Ok(())
    });
}

#[test]
fn bytes_go_out_and_come_in_without_a_copy() {
    pair(
        |mut stream| async move {
            while let Some(data) = stream.recv().await? {
                let at = data.as_ptr();
                let data: Bytes = data.into_bytes();
                assert_eq!(data.as_ptr(), at, "the bytes stay where they are");
                stream.send(data).await?;
            }
            Ok(())
        },
        |mut stream| async move {
            let data = Bytes::from(pattern(30_000));
            stream.send(data.clone()).await?;
            let mut back = vec![0; data.len()];
            aio::timeout(Duration::from_secs(10), stream.read_exact(&mut back)).await??;
            assert!(back == data);
            stream.shutdown().await
        },
    );
}

/// A flush with nothing to flush is ready at once, so that those who ask for one at each poll do not wake themselves.
#[test]
fn flushing_nothing_does_not_wait() {
    pair(
        |mut stream| async move { stream.recv().await.map(drop) },
        |mut stream| async move {
            let mut waited = 0;
            let mut flush = async |stream: &mut Stream| {
                std::future::poll_fn(|cx| {
                    let flushed = stream.poll_flush(cx);
                    waited += usize::from(flushed.is_pending());
                    flushed
                })
                .await
            };
            flush(&mut stream).await?;
            stream.send("x").await?;
            flush(&mut stream).await?;
            flush(&mut stream).await?;
            assert_eq!(waited, 1, "only what was sent is waited for");
            Ok(())
        },
    );
}

/// Answers with the number of connections so far.
#[derive(Clone)]
struct Counting(std::sync::Arc<std::sync::atomic::AtomicUsize>);

impl tower_service::Service<Stream> for Counting {
    type Response = ();
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<()>>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut stream: Stream) -> Self::Future {
        let number = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Box::pin(async move { stream.send(number.to_string()).await })
    }
}

#[test]
fn a_tower_service_serves_connections() {
    let server = Server::new().listen_service("127.0.0.1:0", Counting(Default::default())).start().expect("it starts");
    let to = server.addresses()[0].clone();
    for number in 0..3 {
        let mut stream = ringport::sync::Stream::connect(to.clone()).expect("it accepts");
        let mut text = String::new();
        io::Read::read_to_string(&mut stream, &mut text).expect("it answers");
        assert_eq!(text, number.to_string());
    }
}

/// A server by hyper; `timeout` is for the head of a request.
async fn http(stream: Stream, timeout: Duration, body: Bytes) -> io::Result<()> {
    let answer = hyper::service::service_fn(move |_| {
        let body = http_body_util::Full::new(body.clone());
        async { Ok::<_, std::convert::Infallible>(hyper::Response::new(body)) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(ringport::aio::compat::hyper::TaskTimer).header_read_timeout(timeout);
    server.serve_connection(stream, answer).await.map_err(io::Error::other)
}

/// The body of the next answer.
async fn answer(stream: &mut Stream, held: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    loop {
        if let Some(head) = held.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&held[..head]).to_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("it has a length");
            let end = head + 4 + length.parse::<usize>().expect("it is a number");
            if held.len() >= end {
                let rest = held.split_off(end);
                return Ok(std::mem::replace(held, rest).split_off(head + 4));
            }
        }
        held.extend_from_slice(&stream.recv().await?.ok_or(io::ErrorKind::UnexpectedEof)?);
    }
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n";

/// Answers that are larger than what may be queued, to a peer that has asked for many at once and reads them late.
#[test]
fn hyper_answers_in_order_and_whole() {
    let body = Bytes::from(pattern(700_000));
    let served = body.clone();
    pair(
        move |stream| http(stream, Duration::from_secs(30), served),
        |mut stream| async move {
            stream.send(Bytes::from(REQUEST.repeat(20))).await?;
            aio::sleep(Duration::from_millis(50)).await;
            let mut held = Vec::new();
            for number in 0..20 {
                assert!(answer(&mut stream, &mut held).await? == body, "answer {number}");
            }
            stream.shutdown().await
        },
    );
}

/// The deadline of a head that never ends counts from its own beginning, however many were in time before.
#[test]
fn hyper_ends_a_head_that_takes_too_long() {
    let timeout = Duration::from_millis(400);
    pair(
        move |stream| async move {
            let late = http(stream, timeout, Bytes::from_static(b"x")).await.expect_err("the head never ends");
            assert!(late.to_string().contains("timeout") || format!("{late:?}").contains("Timeout"), "{late:?}");
            Ok(())
        },
        move |mut stream| async move {
            let mut held = Vec::new();
            let mut begin = aio::now();
            for _ in 0..5 {
                begin = aio::now();
                stream.send(REQUEST).await?;
                assert_eq!(answer(&mut stream, &mut held).await?, b"x");
            }
            stream.send(&REQUEST[..10]).await?;
            // Whether with a word or without one: the server hangs up, and not before the time.
            while let Ok(Some(_)) = stream.recv().await {}
            assert!(aio::now() - begin >= timeout, "{:?}", aio::now() - begin);
            Ok(())
        },
    );
}

/// A sleep of hyper's timer ends on whatever thread it is waited for, and can be set anew.
#[test]
fn hyper_sleeps_on_other_threads_too() {
    use hyper::rt::Timer;
    use ringport::aio::compat::hyper::TaskTimer;
    block_on(async {
        let mut sleep = TaskTimer.sleep(Duration::from_secs(3600));
        assert!(aio::timeout(Duration::from_millis(5), &mut sleep).await.is_err());
        TaskTimer.reset(&mut sleep, aio::now() + Duration::from_millis(20));
        let waiting = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("it builds");
            runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), sleep).await.is_ok() })
        });
        while !waiting.is_finished() {
            aio::sleep(Duration::from_millis(2)).await;
        }
        assert!(waiting.join().expect("it does not panic"), "the sleep ended");
    })
    .expect("an engine works");
}
