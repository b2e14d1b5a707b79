"""Checks a running `ringport serve files` with Python's own HTTP client and with raw bytes.

Usage: files.py PORT FOLDER. FOLDER holds what `make_folder` of files.rs put there.
"""

import email.utils
import hashlib
import http.client
import os
import socket
import sys
import unittest

PORT, FOLDER = int(sys.argv[1]), sys.argv[2]
LIMIT = 15


def read(name):
    with open(os.path.join(FOLDER, name), "rb") as file:
        return file.read()


def ask(path, method="GET", headers=None, connection=None):
    connection = connection or http.client.HTTPConnection("127.0.0.1", PORT, timeout=LIMIT)
    connection.request(method, path, headers=headers or {})
    answer = connection.getresponse()
    return answer, answer.read()


def raw(data, half_close=True):
    """Everything that comes back for these bytes until the server closes."""
    with socket.create_connection(("127.0.0.1", PORT), timeout=LIMIT) as peer:
        peer.sendall(data)
        if half_close:
            peer.shutdown(socket.SHUT_WR)
        back = b""
        while part := peer.recv(1 << 16):
            back += part
        return back


class Files(unittest.TestCase):
    def test_get_and_head(self):
        for path, name, kind in [
            ("/", "index.html", "text/html; charset=utf-8"),
            ("/sub/a%20b.txt", "sub/a b.txt", "text/plain; charset=utf-8"),
            ("/sub//./a%20b.txt?query=/../x", "sub/a b.txt", "text/plain; charset=utf-8"),
            ("/empty", "empty", "application/octet-stream"),
            ("/inside", "index.html", "application/octet-stream"),
        ]:
            answer, body = ask(path)
            self.assertEqual((answer.status, body), (200, read(name)), path)
            self.assertEqual(answer.getheader("Content-Type"), kind)
            self.assertIsNotNone(email.utils.parsedate_to_datetime(answer.getheader("Date")))
            answer, body = ask(path, "HEAD")
            self.assertEqual((answer.status, body), (200, b""), path)
            self.assertEqual(answer.getheader("Content-Length"), str(len(read(name))))

    def test_a_large_file(self):
        answer, body = ask("/large.bin")
        wanted = hashlib.sha256(read("large.bin")).hexdigest()
        self.assertEqual((answer.status, hashlib.sha256(body).hexdigest()), (200, wanted))

    def test_many_requests_on_one_connection(self):
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=LIMIT)
        connection.connect()
        first = connection.sock
        for number in range(50):
            path = ["/", "/sub/a%20b.txt", "/none", "/empty"][number % 4]
            answer, _ = ask(path, "HEAD" if number % 3 == 0 else "GET", connection=connection)
            self.assertEqual(answer.status, 404 if path == "/none" else 200)
        self.assertIs(connection.sock, first, "it was kept")

    def test_pipelining(self):
        one = b"GET /sub/a%20b.txt HTTP/1.1\r\nHost: x\r\n\r\n"
        back = raw(one * 2000 + b"GET /large.bin HTTP/1.1\r\nHost: x\r\n\r\n" + one)
        body, large = read("sub/a b.txt"), read("large.bin")
        self.assertEqual(back.count(b"HTTP/1.1 200 OK\r\n"), 2002)
        self.assertTrue(back.endswith(body))
        self.assertIn(large, back)

    def test_ranges(self):
        data = read("large.bin")
        size = len(data)
        for text, first, last in [
            ("0-0", 0, 0), ("5-10", 5, 10), ("1000000-", 1000000, size - 1), ("-7", size - 7, size - 1),
            (f"{size - 1}-", size - 1, size - 1), (f"3-{size * 2}", 3, size - 1),
        ]:
            answer, body = ask("/large.bin", headers={"Range": f"bytes={text}"})
            self.assertEqual((answer.status, answer.getheader("Content-Range")), (206, f"bytes {first}-{last}/{size}"))
            self.assertTrue(body == data[first : last + 1], text)
        for text in [f"{size}-", "-0", f"{size + 5}-{size + 9}"]:
            answer, _ = ask("/large.bin", headers={"Range": f"bytes={text}"})
            self.assertEqual((answer.status, answer.getheader("Content-Range")), (416, f"bytes */{size}"), text)
        for text in ["5-2", "0-1,4-5", "x"]:
            answer, body = ask("/index.html", headers={"Range": f"bytes={text}"})
            self.assertEqual((answer.status, body), (200, read("index.html")), text)

    def test_conditions(self):
        answer, body = ask("/")
        tag, date = answer.getheader("ETag"), answer.getheader("Last-Modified")
        early = email.utils.format_datetime(email.utils.parsedate_to_datetime("Thu, 01 Jan 1998 00:00:00 GMT"), usegmt=True)
        for headers, status in [
            ({"If-None-Match": tag}, 304), ({"If-None-Match": f'"x", W/{tag}'}, 304), ({"If-None-Match": "*"}, 304),
            ({"If-None-Match": '"other"'}, 200), ({"If-None-Match": '"other"', "If-Modified-Since": date}, 200),
            ({"If-Modified-Since": date}, 304), ({"If-Modified-Since": early}, 200),
            ({"If-Modified-Since": "nonsense"}, 200),
            ({"If-Range": tag, "Range": "bytes=0-1"}, 206), ({"If-Range": '"other"', "Range": "bytes=0-1"}, 200),
            ({"If-Range": date, "Range": "bytes=0-1"}, 206),
        ]:
            answer, back = ask("/", headers=headers)
            self.assertEqual(answer.status, status, headers)
            self.assertEqual(back, {304: b"", 200: body, 206: body[:2]}[status], headers)

    def test_nothing_outside_is_served(self):
        secret = b"the secret"
        for path in [
            "/../secret.txt", "/sub/../../secret.txt", "/%2e%2e/secret.txt", "/.%2E/secret.txt", "/..%2fsecret.txt",
            "/%2e%2e%2fsecret.txt", "/..%5csecret.txt", "//../secret.txt", "/link.txt", "/linked/secret.txt",
            "/absolute.txt", "//etc/passwd", "/etc/passwd", "/%2fetc%2fpasswd", "/a%00/../../secret.txt", "/secret.txt%00",
            "/sub/../../../../../../../../etc/passwd", "/pipe", "/loop", "/unreadable\u00e4".encode().decode("latin-1"),
            "http://x/../secret.txt", "/....//....//secret.txt", "/%252e%252e/secret.txt",
        ]:
            back = raw(b"GET " + path.encode("latin-1") + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            status = back.split(b" ")[1] if b" " in back else back
            self.assertIn(status, (b"400", b"404"), path)
            self.assertFalse(secret in back or b"root:" in back, path)

    def test_what_is_no_plain_request(self):
        host = b"Host: x\r\n"
        for data, status in [
            (b"POST / HTTP/1.1\r\n" + host + b"Content-Length: 5\r\n\r\nhello", b"400"),
            (b"POST / HTTP/1.1\r\n" + host + b"\r\n", b"405"),
            (b"DELETE / HTTP/1.1\r\n" + host + b"\r\n", b"405"),
            (b"GET / HTTP/1.1\r\n\r\n", b"400"),
            (b"GET / HTTP/9.9\r\n" + host + b"\r\n", b"400"),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"400"),
            (b"GET / HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
            (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n" + host + b"\r\n", b"431"),
            (b"GET / HTTP/1.1\r\n" + host + b"X: " + b"a" * 9000 + b"\r\n\r\n", b"431"),
            (b"GET / HTTP/1.1\r\n" + host + b"X: y\r\n" * 5000, b"431"),
        ]:
            back = raw(data)
            self.assertEqual(back.split(b" ")[1], status, data[:60])
            # What follows a refused request is not taken for another.
            self.assertEqual(back.count(b"HTTP/1.1 "), 1, data[:60])
        self.assertIn(b"Allow: GET, HEAD", raw(b"PUT / HTTP/1.1\r\nHost: x\r\n\r\n"))

    def test_byte_by_byte(self):
        with socket.create_connection(("127.0.0.1", PORT), timeout=LIMIT) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in b"GET /sub/a%20b.txt HTTP/1.0\r\n\r\n":
                peer.sendall(bytes([byte]))
            back = b""
            while part := peer.recv(1 << 16):
                back += part
            self.assertTrue(back.endswith(read("sub/a b.txt")) and b"Connection: close" in back)

    def test_disconnects_midway_harm_nobody(self):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", PORT), timeout=LIMIT) as peer:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                peer.sendall(b"GET /large.bin HTTP/1.1\r\nHost: x\r\n\r\n")
                self.assertTrue(peer.recv(1000).startswith(b"HTTP/1.1 200 OK"))
        self.assertEqual(ask("/")[0].status, 200)

    def test_http_1_0(self):
        back = raw(b"GET / HTTP/1.0\r\n\r\nGET / HTTP/1.0\r\n\r\n")
        self.assertEqual(back.count(b"HTTP/1.1 200 OK"), 1)
        back = raw(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 3)
        self.assertEqual(back.count(b"Connection: keep-alive"), 3)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
