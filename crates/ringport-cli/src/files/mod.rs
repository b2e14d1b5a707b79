//! `ringport serve files`: a small HTTP/1.1 server of the files of one folder.
//!
//! GET and HEAD, connections that are kept, pipelined requests, single ranges, conditions. A file leaves in parts, each a
//! range that the kernel sends by itself, so that a connection never has more than some hundred kilobytes queued. While
//! an answer is on its way nothing more is read than fits the longest head.

mod folder;
mod request;

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub(crate) use folder::Folder;
use folder::Found;
use request::{HEAD_BYTES_MAX, Parsed, Request};
use ringport::{Buf, Connection, FileRange, Handler, TimerId};

/// How long a request may take from its first byte to its last.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Longest part of a file that is queued at a time.
const PART_BYTES_MAX: u64 = 2 << 20;

/// Serves a folder.
pub(crate) struct Files {
    folder: Folder,
    /// Up to where the queue is filled, in bytes.
    high_mark: u64,
    part_bytes: u64,
}

/// A connection: what was received and not answered, and what is left of the answer.
#[derive(Default)]
pub(crate) struct Exchange {
    received: Vec<u8>,
    body: Option<Body>,
    /// The answer that is on its way is the last.
    last: bool,
    peer_closed: bool,
    /// Ends a request that does not come to its end.
    deadline: Option<TimerId>,
}

/// What is left of a file to be sent.
struct Body {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

type Peer<'a> = Connection<'a, Exchange>;

impl Handler for Files {
    type State = Exchange;

    fn data(&mut self, conn: &mut Peer<'_>, data: Buf) {
        if !conn.state.last {
            conn.state.received.extend_from_slice(&data);
            self.go_on(conn);
        }
    }

    fn writable(&mut self, conn: &mut Peer<'_>) {
        self.go_on(conn);
    }

    /// A peer that has sent its last request still reads the answers.
    fn peer_closed(&mut self, conn: &mut Peer<'_>) {
        conn.state.peer_closed = true;
        self.go_on(conn);
    }

    fn timer(&mut self, conn: &mut Peer<'_>, timer: TimerId, _: u64) {
        if conn.state.deadline == Some(timer) {
            conn.state.deadline = None;
            refuse(conn, 408);
            self.go_on(conn);
        }
    }
}

impl Files {
    /// For connections with this send limit and high mark.
    pub(crate) fn new(folder: Folder, send_limit: u64, high_mark: u64) -> Self {
        Self { folder, high_mark, part_bytes: (send_limit / 4).clamp(256, PART_BYTES_MAX) }
    }

    /// Sends what there is room for, answers the next request, and so on as far as that goes now.
    fn go_on(&mut self, conn: &mut Peer<'_>) {
        let waits = loop {
            self.send_body(conn);
            if conn.state.body.is_some() || conn.queued() > self.high_mark {
                break true;
            }
            if conn.state.last {
                conn.state.received = Vec::new();
                conn.close();
                return;
            }
            match request::parse(&conn.state.received) {
                Parsed::Partial => break false,
                Parsed::Refused(status) => refuse(conn, status),
                Parsed::Request(request, bytes) => {
                    conn.state.received.drain(..bytes);
                    if let Some(deadline) = conn.state.deadline.take() {
                        conn.cancel_timer(deadline);
                    }
                    self.answer(conn, &request);
                }
            }
        };
        let received = conn.state.received.len();
        if waits && received >= HEAD_BYTES_MAX {
            conn.pause();
        } else {
            conn.resume();
        }
        if waits {
            return;
        }
        if conn.state.peer_closed {
            conn.close();
        } else if received == 0 {
            conn.state.received = Vec::new(); // Idle connections cost nothing.
        } else if conn.state.deadline.is_none() {
            conn.state.deadline = Some(conn.set_timer(HEAD_TIME, 0));
        }
    }

    fn send_body(&self, conn: &mut Peer<'_>) {
        while conn.queued() <= self.high_mark
            && let Some(body) = &mut conn.state.body
        {
            let part = body.left.min(self.part_bytes);
            let range = FileRange::new(Arc::clone(&body.file), body.offset, part as usize);
            body.offset += part;
            body.left -= part;
            if body.left == 0 {
                conn.state.body = None;
            }
            if !conn.send(range).is_queued() {
                return; // It is closing: nothing is sent any more.
            }
        }
    }

    fn answer(&self, conn: &mut Peer<'_>, request: &Request) {
        conn.state.last = !request.keep_alive;
        let Some(found) = self.folder.find(&request.path) else { return tell(conn, request, 404, "") };
        let about = format!(
            "ETag: {}\r\nLast-Modified: {}\r\nAccept-Ranges: bytes\r\n",
            found.etag,
            httpdate::fmt_http_date(found.modified)
        );
        if is_known(request, &found) {
            return head(conn, request, 304, &about);
        }
        let wanted = request.range.filter(|_| is_same(request, &found)).map(|range| range.within(found.length));
        let (status, first, count) = match wanted {
            None => (200, 0, found.length),
            Some(Some((first, count))) => (206, first, count),
            Some(None) => {
                let length = format!("Content-Range: bytes */{}\r\n", found.length);
                return tell(conn, request, 416, &length);
            }
        };
        let mut about = format!("{about}Content-Type: {}\r\nContent-Length: {count}\r\n", found.content_type);
        if status == 206 {
            about += &format!("Content-Range: bytes {first}-{}/{}\r\n", first + count - 1, found.length);
        }
        head(conn, request, status, &about);
        if !request.head_only && count > 0 {
            conn.state.body = Some(Body { file: found.file, offset: first, left: count });
        }
    }
}

/// Whether the peer has this file already (RFC 9110, 13.1.2 and 13.1.3).
fn is_known(request: &Request, found: &Found) -> bool {
    let same = |tag: &str| tag.trim().trim_start_matches("W/") == found.etag || tag.trim() == "*";
    match (&request.if_none_match, request.if_modified_since) {
        (Some(tags), _) => tags.split(',').any(same),
        (None, Some(since)) => found.modified <= since,
        (None, None) => false,
    }
}

/// Whether a range is still of the file that the peer has a part of (RFC 9110, 13.1.5).
fn is_same(request: &Request, found: &Found) -> bool {
    request.if_range.as_ref().is_none_or(|have| {
        have.trim() == found.etag || httpdate::parse_http_date(have).is_ok_and(|date| date == found.modified)
    })
}

/// Answers bytes that are no request; nothing more is read from this peer.
fn refuse(conn: &mut Peer<'_>, status: u16) {
    conn.state.last = true;
    conn.state.received = Vec::new();
    tell(conn, &Request::default(), status, if status == 405 { "Allow: GET, HEAD\r\n" } else { "" });
}

/// An answer that says nothing but its status.
fn tell(conn: &mut Peer<'_>, request: &Request, status: u16, about: &str) {
    let text = format!("{status} {}\n", reason(status));
    let about = format!("{about}Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n", text.len());
    head(conn, request, status, &about);
    if !request.head_only {
        conn.write(text.as_bytes());
    }
}

fn head(conn: &mut Peer<'_>, request: &Request, status: u16, about: &str) {
    let connection = match (conn.state.last, request.old) {
        (true, _) => "Connection: close\r\n",
        (false, true) => "Connection: keep-alive\r\n",
        (false, false) => "",
    };
    let date = httpdate::fmt_http_date(SystemTime::now());
    let text = format!("HTTP/1.1 {status} {}\r\nDate: {date}\r\n{about}{connection}\r\n", reason(status));
    conn.write(text.as_bytes());
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        304 => "Not Modified",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        416 => "Range Not Satisfiable",
        431 => "Request Header Fields Too Large",
        _ => "Error",
    }
}
