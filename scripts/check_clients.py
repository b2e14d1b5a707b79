"""Lets programs that know nothing of ringport use `ringport serve echo`, on each engine of this machine.

usage: check_clients.py RINGPORT

  sockperf ping-pong, under-load   messages come back, none of them dropped, twice or out of order
  nc -N                            a file of 1 MiB comes back after the half-close, compared by its hash
  a Python socket                  pieces of random sizes come back, and the end after the half-close

A client that is not installed is skipped. Exits with 1 if anything failed, with 77 if something was skipped.

An echo is not quite what sockperf expects: it drops messages that bear the mark of a client, and its server takes that
off. So sockperf talks to ringport through a relay that takes it off each message on its way back, and sees to it that
each one comes back as it went. (The header is in sockperf's source, message.h: sequence number of 8 bytes, flags of 2,
length of 4, all in network order; the lowest bit of the flags is the mark.)
"""

import collections
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading

# Longest time of any single thing.
LIMIT = 30
SECONDS = 2
HEADER = 14
CLIENT_MARK = 1
MIB = 1 << 20


class Skipped(Exception):
    pass


def need(program):
    if shutil.which(program) is None:
        raise Skipped(f"{program} is not installed")
    return program


def check(truth, message):
    if not truth:
        raise AssertionError(message)


@contextlib.contextmanager
def server(ringport, engine):
    command = [ringport, "serve", "echo", "--engine", engine, "--listen", "127.0.0.1:0", "--log", "warn"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        check(line.startswith("listening tcp "), f"it does not listen: {line!r}")
        yield ("127.0.0.1", int(line.split()[2].rpartition(":")[2]))
        process.terminate()
        code = process.wait(LIMIT)
        check(code == 0, f"the server ended with {code}")
    finally:
        process.kill()
        process.wait()


# sockperf.


class Messages:
    """Cuts a stream into messages, with what is left of a part."""

    def __init__(self):
        self.left = bytearray()

    def cut(self, data):
        self.left += data
        at, whole = 0, []
        while len(self.left) - at >= HEADER:
            length = int.from_bytes(self.left[at + 10 : at + HEADER], "big")
            check(HEADER <= length <= MIB, f"a message of {length} bytes")
            if len(self.left) - at < length:
                break
            whole.append(self.left[at : at + length])
            at += length
        del self.left[:at]
        return whole


class Exchange:
    """What goes and comes on one connection. Messages must come back as they went, each once, in order."""

    def __init__(self):
        self.going, self.coming = Messages(), Messages()
        self.under_way = collections.deque()

    def up(self, data):
        self.under_way.extend(self.going.cut(data))
        return data

    def back(self, data):
        messages = self.coming.cut(data)
        for message in messages:
            check(self.under_way and self.under_way.popleft() == message, "another message came back than went")
            message[9] &= ~CLIENT_MARK & 0xFF
        return b"".join(messages)


def carry(source, target, change):
    """Passes on what arrives, changed, until the end or an error of either side."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(change(data))
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def relay(address):
    """Listens for one connection, which it carries to `address` and back."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(LIMIT)
    failures = []

    def run():
        try:
            near, _ = listener.accept()
            with near, socket.create_connection(address, LIMIT) as far:
                for one in (near, far):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                exchange = Exchange()
                up = threading.Thread(target=carry, args=(near, far, exchange.up))
                up.start()
                carry(far, near, exchange.back)
                up.join(LIMIT)
        except (OSError, AssertionError) as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        thread.join(LIMIT)
        listener.close()
    check(not failures, f"relay: {failures}")


def sockperf(mode, *options):
    def run(address):
        program = need("sockperf")
        with relay(address) as port:
            command = [program, mode, "--tcp", "-i", "127.0.0.1", "-p", str(port), "-t", str(SECONDS), "-m", "64"]
            done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=LIMIT)
        text = done.stdout + done.stderr
        check(done.returncode == 0, f"exit code {done.returncode}\n{text}")
        sent, received = (
            max(map(int, re.findall(rf"{what}Messages=(\d+)", text)), default=0) for what in ("Sent", "Received")
        )
        check(received > 0, f"nothing came back\n{text}")
        for fault in ("dropped", "duplicated", "out-of-order"):
            counts = list(map(int, re.findall(rf"# {fault} messages = (\d+)", text)))
            # What was still under way at the end counts as dropped. (The relay looks at each message itself.)
            most = sent - received if fault == "dropped" else 0
            check(counts and max(counts) <= most, f"{fault}: {counts}\n{text}")
        check("rror" not in text, text)
        return f"{received} of {sent} messages came back before the end"

    return run


# The others.


def netcat(address):
    program = need("nc")
    data = random.Random(1).randbytes(MIB)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        command = [program, "-N", address[0], str(address[1])]
        done = subprocess.run(command, stdin=file, capture_output=True, timeout=LIMIT)
    check(done.returncode == 0, f"exit code {done.returncode}: {done.stderr.decode()}")
    wanted, found = (hashlib.sha256(one).hexdigest() for one in (data, done.stdout))
    check(wanted == found, f"{len(data)} bytes went, {len(done.stdout)} others came back")
    return f"{len(data)} bytes, sha256 {found[:16]}…"


def python(address):
    dice = random.Random(2)
    pieces = [dice.randbytes(dice.choice((1, 64, 4096, 100_000))) for _ in range(100)]
    with socket.create_connection(address, LIMIT) as stream:
        for piece in pieces:
            stream.sendall(piece)
            echo = bytearray()
            while len(echo) < len(piece):
                data = stream.recv(65536)
                check(data, "the end came too early")
                echo += data
            check(echo == piece, f"a piece of {len(piece)} bytes came back changed")
        stream.shutdown(socket.SHUT_WR)
        check(stream.recv(1) == b"", "bytes came after the half-close")
    return f"{len(pieces)} pieces, {sum(map(len, pieces))} bytes"


CLIENTS = {
    "sockperf ping-pong": sockperf("ping-pong", "--data-integrity"),
    "sockperf under-load": sockperf("under-load", "--mps", "5000", "--reply-every", "1"),
    "nc -N": netcat,
    "Python socket": python,
}


def main(ringport):
    rows = json.loads(subprocess.run([ringport, "engines", "--json"], capture_output=True, check=True).stdout)
    engines = [row["name"] for row in rows if row["available"]]
    failed, skipped = 0, []
    for engine in engines:
        for name, client in CLIENTS.items():
            try:
                with server(ringport, engine) as address:
                    outcome = client(address)
            except Skipped as reason:
                skipped.append(str(reason))
                outcome = f"skipped: {reason}"
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                failed += 1
                outcome = f"FAILED: {error}"
            print(f"{engine:10} {name:22} {outcome}", flush=True)
    if failed or not engines:
        return 1
    if skipped:
        print(f"skipped: {', '.join(sorted(set(skipped)))}")
        return 77
    return 0


if __name__ == "__main__":
    sys.exit(main(os.path.abspath(sys.argv[1])))
