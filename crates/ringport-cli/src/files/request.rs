//! What a request asks for: bytes in, a [`Request`] or the status that answers them out. No files, no sockets.
//!
//! RFC 9112 (HTTP/1.1) and RFC 9110 (semantics, ranges, conditions) are followed strictly where leniency could be abused:
//! a request with a body is refused, as nothing here reads one, and the connection then closes, so that no body is ever
//! taken for the next request.

use std::time::SystemTime;

/// Longest request line and headers.
pub(crate) const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Most headers; httparse wants their number in advance.
const HEADERS_MAX: usize = 64;

/// What came of the bytes so far.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// The head is not complete.
    Partial,
    /// A request, and how many bytes its head has.
    Request(Request, usize),
    /// It is answered with this status, and the connection closed.
    Refused(u16),
}

/// A request for a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Request {
    /// Only the head of the answer is wanted (HEAD).
    pub(crate) head_only: bool,
    /// The connection goes on afterwards.
    pub(crate) keep_alive: bool,
    /// HTTP/1.0, which must be told so.
    pub(crate) old: bool,
    /// Names of folders and at the end of the file, decoded, none of them `..`.
    pub(crate) path: String,
    pub(crate) range: Option<Wanted>,
    pub(crate) if_none_match: Option<String>,
    pub(crate) if_modified_since: Option<SystemTime>,
    pub(crate) if_range: Option<String>,
}

/// The part of a file that is wanted, before its length is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// From a byte to another, both included, or to the end.
    From(u64, Option<u64>),
    /// So many at the end.
    Last(u64),
}

impl Wanted {
    /// First byte and number of bytes in a file of `length`. `None` if there is no such part.
    pub(crate) fn within(self, length: u64) -> Option<(u64, u64)> {
        match self {
            Self::From(first, _) if first >= length => None,
            Self::From(first, last) => {
                Some((first, last.map_or(length, |last| length.min(last.saturating_add(1))) - first))
            }
            Self::Last(0) => None,
            Self::Last(_) if length == 0 => None,
            Self::Last(count) => Some((length - count.min(length), count.min(length))),
        }
    }
}

/// Looks at what was received.
pub(crate) fn parse(received: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let head = &received[..received.len().min(HEAD_BYTES_MAX)];
    match request.parse(head) {
        Ok(httparse::Status::Complete(bytes)) => match understand(&request) {
            Ok(request) => Parsed::Request(request, bytes),
            Err(status) => Parsed::Refused(status),
        },
        Ok(httparse::Status::Partial) if received.len() >= HEAD_BYTES_MAX => Parsed::Refused(431),
        Ok(httparse::Status::Partial) => Parsed::Partial,
        Err(httparse::Error::TooManyHeaders) => Parsed::Refused(431),
        Err(_) => Parsed::Refused(400),
    }
}

fn understand(parsed: &httparse::Request<'_, '_>) -> Result<Request, u16> {
    let version = parsed.version.ok_or(400_u16)?;
    let mut request = Request { old: version == 0, keep_alive: version == 1, ..Request::default() };
    let mut hosts = 0;
    for header in parsed.headers.iter() {
        let value = std::str::from_utf8(header.value).ok();
        match header.name.to_ascii_lowercase().as_str() {
            "host" => hosts += 1,
            "transfer-encoding" => return Err(400),
            "content-length" if value.is_none_or(|value| value.trim() != "0") => return Err(400),
            "connection" => {
                for token in value.unwrap_or_default().split(',').map(str::trim) {
                    if token.eq_ignore_ascii_case("close") {
                        request.keep_alive = false;
                    } else if token.eq_ignore_ascii_case("keep-alive") && version == 0 {
                        request.keep_alive = true;
                    }
                }
            }
            "range" => request.range = value.and_then(part),
            "if-none-match" => request.if_none_match = value.map(str::to_owned),
            "if-modified-since" => {
                request.if_modified_since = value.and_then(|date| httpdate::parse_http_date(date).ok());
            }
            "if-range" => request.if_range = value.map(str::to_owned),
            _ => {}
        }
    }
    if hosts > 1 || (hosts == 0 && version == 1) {
        return Err(400);
    }
    match parsed.method {
        Some("GET") => {}
        Some("HEAD") => request.head_only = true,
        _ => return Err(405),
    }
    request.path = path(parsed.path.ok_or(400_u16)?)?;
    if request.head_only {
        request.range = None;
    }
    Ok(request)
}

/// One range of bytes. Whatever else the header says is not understood and so ignored, several ranges included.
fn part(value: &str) -> Option<Wanted> {
    let (first, last) = value.trim().strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if digits { text.parse::<u64>().ok() } else { None }
    };
    match (first, last) {
        ("", last) => Some(Wanted::Last(number(last)?)),
        (first, "") => Some(Wanted::From(number(first)?, None)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Wanted::From(first, Some(last)))
        }
    }
}

/// The path of a target, without the query, decoded and free of anything that leads elsewhere.
fn path(target: &str) -> Result<String, u16> {
    let target = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => target,
    };
    if !target.starts_with('/') {
        return Err(400);
    }
    let encoded = target.split(['?', '#']).next().unwrap_or_default();
    let decoded = String::from_utf8(decode(encoded)?).map_err(|_| 404_u16)?;
    if decoded.contains('\0') {
        return Err(400);
    }
    let names = decoded.split('/').filter(|name| !name.is_empty() && *name != ".");
    let names: Vec<&str> = names.collect();
    if names.iter().any(|name| *name == ".." || name.contains('\\')) {
        return Err(400);
    }
    Ok(names.join("/"))
}

fn decode(text: &str) -> Result<Vec<u8>, u16> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16)).ok_or(400_u16);
        decoded.push((digit()? * 16 + digit()?) as u8);
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(target: &str) -> Parsed {
        parse(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
    }

    #[test]
    fn paths_stay_inside() {
        for (target, expected) in [
            ("/", ""),
            ("/a/b.txt", "a/b.txt"),
            ("//etc//passwd", "etc/passwd"),
            ("/./a/.", "a"),
            ("/a%20b?c=/../d#e", "a b"),
            ("http://host/a", "a"),
            ("http://host", ""),
            ("/..a/...", "..a/..."),
            ("/%C3%A4", "ä"),
        ] {
            assert!(matches!(get(target), Parsed::Request(Request { path, .. }, _) if path == expected), "{target}");
        }
        for (target, status) in [
            ("/../etc/passwd", 400),
            ("/a/%2e%2e/%2E./b", 400),
            ("/..%2f..%2fetc", 400),
            ("/..%5c..%5cetc", 400),
            ("/a%00.txt", 400),
            ("/a%0", 400),
            ("/a%zz", 400),
            ("*", 400),
            ("etc/passwd", 400),
            ("ftp://host/a", 400),
            ("/%ff%fe", 404),
        ] {
            assert_eq!(get(target), Parsed::Refused(status), "{target}");
        }
    }

    #[test]
    fn ranges() {
        for (text, length, expected) in [
            ("bytes=0-0", 10, Some(Some((0, 1)))),
            ("bytes=2-5", 10, Some(Some((2, 4)))),
            ("bytes=5-", 10, Some(Some((5, 5)))),
            ("bytes=-3", 10, Some(Some((7, 3)))),
            ("bytes=-30", 10, Some(Some((0, 10)))),
            ("bytes=8-99999999999999999", 10, Some(Some((8, 2)))),
            ("bytes=0-18446744073709551615", 10, Some(Some((0, 10)))),
            ("bytes=10-", 10, Some(None)),
            ("bytes=-0", 10, Some(None)),
            ("bytes=0-", 0, Some(None)),
            ("bytes=-1", 0, Some(None)),
            ("bytes=5-2", 10, None),
            ("bytes=0-1,3-4", 10, None),
            ("bytes=+1-2", 10, None),
            ("bytes=99999999999999999999-", 10, None),
            ("lines=1-2", 10, None),
            ("bytes=-", 10, None),
        ] {
            assert_eq!(part(text).map(|part| part.within(length)), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_plain_request_is_refused() {
        let long = format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(HEAD_BYTES_MAX));
        let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_MAX));
        for (text, status) in [
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405),
            ("GET / HTTP/2.0\r\nHost: x\r\n\r\n", 400),
            ("GET /\r\n\r\n", 400),
            ("\x16\x03\x01\x02", 400),
            (&long, 431),
            (&many, 431),
        ] {
            assert_eq!(parse(text.as_bytes()), Parsed::Refused(status), "{text:.60}");
        }
        assert_eq!(parse(b""), Parsed::Partial);
        assert_eq!(parse(b"GET / HTTP/1.1\r\nHost: x\r\n"), Parsed::Partial);
    }

    #[test]
    fn connections_are_kept_as_their_version_says() {
        for (version, header, expected) in [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "Connection: x, Close\r\n", false),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
        ] {
            let text = format!("HEAD / HTTP/{version}\r\nHost: x\r\n{header}\r\n");
            let Parsed::Request(request, bytes) = parse(text.as_bytes()) else { panic!("{text}") };
            assert_eq!((request.keep_alive, request.head_only, bytes), (expected, true, text.len()));
        }
    }
}
