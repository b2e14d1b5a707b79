#!/usr/bin/env python3
"""Linux programs against servers under Wine, and programs under Wine against servers on Linux.

    scripts/wine.sh python3 scripts/wine/across.py --verbose Across
    scripts/wine.sh python3 scripts/wine/across.py --verbose Shipped

Wine's sockets are the system's, so that both sides share the loopback. Both programs must have been built, that for Windows
with the functions that stand in for Registered I/O, and for the second line without them, as it is given away:

    cargo build -p ringport-cli
    cargo build -p ringport-cli --target x86_64-pc-windows-gnu --features rio-standin
    cargo build -p ringport-cli --target x86_64-pc-windows-gnu

Every reply is compared by the benchmark and here, and a part of them by the load generator of ../shared/lab (skipped where
that is missing). Nothing here says anything about speed.
"""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
LINUX = [os.path.join(TARGET, "debug", "ringport")]
WINE = ["wine", os.path.join(TARGET, "x86_64-pc-windows-gnu", "debug", "ringport.exe")]
LAB = os.path.join(ROOT, "..", "shared", "lab")
SECONDS = 60  # the most that anything single may take
LOAD = ["--iterations", "3000", "--connections", "20", "--size", "1..20k", "--pipeline", "4"]


@functools.lru_cache(maxsize=None)
def engines(program):
    output = subprocess.run([*program, "engines", "--json"], capture_output=True, timeout=SECONDS, check=True)
    return [row["name"] for row in json.loads(output.stdout) if row["available"]]


class Server:
    """`serve echo`, with its addresses."""

    def __init__(self, program, *arguments):
        command = [*program, "serve", "echo", *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)
        self.log = ""
        self.reader = threading.Thread(target=self.read_log)
        self.reader.start()
        watch = threading.Timer(SECONDS, self.process.kill)
        watch.start()
        line = self.process.stdout.readline()
        watch.cancel()
        if not line.startswith("listening tcp "):
            self.kill()
            raise AssertionError(f"it does not listen: {line!r} {self.log}")
        self.address = line.split()[2]
        self.engine = line.split()[3].removeprefix("engine=")

    def read_log(self):
        self.log = self.process.stderr.read()

    def connect(self):
        host, port = self.address.rsplit(":", 1)
        return socket.create_connection((host, int(port)), timeout=SECONDS)

    def stop(self):
        """Wine hands an interrupt on as Ctrl-C. The exit code and the log."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(SECONDS)
        self.reader.join(SECONDS)
        return code, self.log

    def kill(self):
        self.process.kill()
        self.process.wait(SECONDS)
        self.reader.join(SECONDS)
        self.process.stdout.close()
        self.process.stderr.close()


@contextlib.contextmanager
def serving(program, *arguments):
    server = Server(program, *arguments)
    try:
        yield server
    finally:
        server.kill()


def pattern(length):
    return bytes((at * 31 ^ (at >> 8) * 7) & 255 for at in range(length))


def read_to_end(stream):
    pieces = []
    while piece := stream.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Across(unittest.TestCase):
    def bench(self, program, address, engine, load):
        command = [*program, "bench", address, "--engine", engine, "--json", "-", *load]
        output = subprocess.run(command, capture_output=True, timeout=2 * SECONDS, check=False)
        self.assertEqual(output.returncode, 0, output.stderr.decode(errors="replace"))
        result = json.loads(output.stdout)["results"][0]
        self.assertEqual(result["messages"], 3000, result)
        self.assertEqual({name: count for name, count in result["errors"].items() if count}, {}, result)

    def test_rio_takes_part(self):
        self.assertIn("rio", engines(tuple(WINE)), "the program was built without its stand-in")

    def test_a_socket_of_python(self):
        data = pattern(1 << 20)
        for engine in engines(tuple(WINE)):
            with self.subTest(engine=engine), serving(WINE, "--listen", "127.0.0.1:0", "--engine", engine) as server:
                with server.connect() as stream:
                    sender = threading.Thread(target=lambda: (stream.sendall(data), stream.shutdown(socket.SHUT_WR)))
                    sender.start()
                    back = read_to_end(stream)
                    sender.join(SECONDS)
                self.assertEqual(len(back), len(data))
                self.assertTrue(back == data)
                code, log = server.stop()
                self.assertEqual(code, 0, log)

    def test_a_drain_loses_nothing(self):
        data = pattern(200_000)
        for engine in engines(tuple(WINE)):
            with self.subTest(engine=engine), serving(WINE, "--listen", "127.0.0.1:0", "--engine", engine) as server:
                with server.connect() as stream:
                    stream.sendall(b"up")
                    self.assertEqual(stream.recv(2), b"up")
                    stream.sendall(data)
                    # The data is on its way, in one direction or the other, when the server is asked to end.
                    server.process.send_signal(signal.SIGINT)
                    back = read_to_end(stream)
                self.assertEqual(len(back), len(data), server.log)
                self.assertTrue(back == data)
                self.assertEqual(server.process.wait(SECONDS), 0, server.log)
                server.reader.join(SECONDS)
                self.assertIn("draining", server.log)

    def test_linux_loads_wine(self):
        for engine in engines(tuple(WINE)):
            with serving(WINE, "--listen", "127.0.0.1:0", "--engine", engine, "--workers", "2") as server:
                for load in engines(tuple(LINUX)):
                    with self.subTest(server=engine, load=load):
                        self.bench(LINUX, server.address, load, LOAD)

    def test_wine_loads_linux(self):
        for engine in engines(tuple(LINUX)):
            with serving(LINUX, "--listen", "127.0.0.1:0", "--engine", engine) as server:
                for load in engines(tuple(WINE)):
                    with self.subTest(server=engine, load=load):
                        self.bench(WINE, server.address, load, LOAD)

    def test_the_load_generator_of_the_lab(self):
        generator = loadgen()
        if generator is None:
            self.skipTest(f"there is no lab in {LAB}, or it does not build")
        # It connects to four addresses of the loopback.
        for engine in engines(tuple(WINE)):
            port = free_port()
            listen = [part for host in range(1, 5) for part in ("--listen", f"127.0.0.{host}:{port}")]
            with serving(WINE, *listen, "--engine", engine) as server:
                for conns, size, depth in ((50, 64, 1), (20, 1024, 16), (20, 16384, 1)):
                    with self.subTest(engine=engine, conns=conns, size=size, depth=depth):
                        load = [f"--conns={conns}", f"--size={size}", f"--depth={depth}", "--ms=1500", "--warm=300"]
                        self.generate(generator, server, port, load)

    def generate(self, generator, server, port, load):
        output = subprocess.run([generator, f"--port={port}", *load], capture_output=True, timeout=SECONDS, check=False)
        errors = output.stderr.decode(errors="replace")
        self.assertEqual(output.returncode, 0, errors + server.log)
        report = json.loads(output.stdout)
        self.assertGreater(report["msgs_s"], 0, report)
        self.assertGreater(report["checked_recvs"], 0, report)


class Shipped(unittest.TestCase):
    """Wine has no Registered I/O, and nothing in the program pretends otherwise."""

    def test_it_says_what_is_missing_and_why(self):
        output = subprocess.run([*WINE, "engines", "--json"], capture_output=True, timeout=SECONDS, check=True)
        rows = {row["name"]: row for row in json.loads(output.stdout)}
        self.assertFalse(rows["rio"]["available"], rows["rio"])
        self.assertIn("no Registered I/O", rows["rio"]["detail"])
        self.assertEqual([name for name, row in rows.items() if row["auto"]], ["iocp"])

    def test_rio_is_a_clear_error(self):
        command = [*WINE, "serve", "echo", "--listen", "127.0.0.1:0", "--engine", "rio"]
        output = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False, text=True)
        self.assertEqual((output.returncode, output.stdout), (1, ""), output.stderr)
        lines = output.stderr.splitlines()
        self.assertEqual(len(lines), 1, output.stderr)
        self.assertRegex(lines[0], "^ringport: engine rio is not available: .*no Registered I/O.*--engine iocp")

    def test_auto_takes_iocp(self):
        with serving(WINE, "--listen", "127.0.0.1:0") as server:
            self.assertEqual(server.engine, "iocp")
            with server.connect() as stream:
                stream.sendall(b"served")
                self.assertEqual(stream.recv(6, socket.MSG_WAITALL), b"served")
            code, log = server.stop()
            self.assertEqual(code, 0, log)


def loadgen():
    """The load generator, built now unless it was before. None where there is no lab."""
    binary = os.path.join(TARGET, "lab", "release", "loadgen")
    manifest = os.path.join(LAB, "Cargo.toml")
    if not os.access(binary, os.X_OK) and os.path.exists(manifest):
        command = ["cargo", "build", "--locked", "--release", "--package", "loadgen", "--manifest-path", manifest]
        environment = {**os.environ, "CARGO_TARGET_DIR": os.path.join(TARGET, "lab")}
        subprocess.run(command, env=environment, stdout=sys.stderr, check=False)
    return binary if os.access(binary, os.X_OK) else None


if __name__ == "__main__":
    unittest.main()
