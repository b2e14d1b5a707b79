"""Counts the system calls that `ringport serve echo` makes for a message, by strace(1), on each engine of this machine.

usage: check_calls.py RINGPORT

50 connections echo 64 bytes each, over and over. On io_uring no byte may pass through recv, an enter must serve several
messages, and a send is a call of its own only in a turn with a single event, so no more than there are enters; on epoll a message costs one recv and one send, and a wait must serve several. The table of all
calls is printed. Exits with 1 if a bound does not hold, with 77 where strace is missing or may not trace.

How many messages share an enter depends on how busy the machine is with other things: an engine has three tries.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

LIMIT = 60
TRIES = 3
CONNECTIONS, SIZE, MESSAGES, WARMUP = 50, 64, 20_000, 1_000
# Calls that move bytes. The probe of an engine makes two of them.
RECEIVE = ("recvfrom", "recvmsg", "recvmmsg", "readv")
SEND = ("sendto", "sendmsg", "sendmmsg", "writev")
WAIT = ("epoll_wait", "epoll_pwait", "epoll_pwait2")
PROBE = 4


def trace(ringport, engine):
    """Runs a load against a traced server. Returns the calls by name, the messages served and the table."""
    with tempfile.NamedTemporaryFile("r") as table:
        serve = [ringport, "serve", "echo", "--engine", engine, "--listen", "127.0.0.1:0", "--log", "info"]
        # The shell becomes the server, so that its number is known.
        shell = ["sh", "-c", 'echo $$ && exec "$0" "$@"', *serve]
        command = ["strace", "--follow-forks", "--summary-only", "--output", table.name, *shell]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
            pid = int(server.stdout.readline())
            try:
                line = server.stdout.readline()
                load(ringport, line.split()[2])
                os.kill(pid, 15)
                _, errors = server.communicate(timeout=LIMIT)
            except BaseException:
                # The server outlives whoever traces it.
                os.kill(pid, 9)
                server.kill()
                raise
        if server.returncode != 0:
            raise RuntimeError(f"{engine}: the server ended with {server.returncode}: {errors}")
        text = table.read()
    messages = int(re.search(r"received_bytes=(\d+)", errors)[1]) // SIZE
    # seconds, share, microseconds, calls, perhaps errors, name
    rows = re.findall(r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", text, re.MULTILINE)
    return {name: int(calls) for calls, name in rows if name != "total"}, messages, text


def load(ringport, address):
    sizes = ["--connections", str(CONNECTIONS), "--size", str(SIZE)]
    counts = ["--iterations", str(MESSAGES), "--warmup", str(WARMUP), "--no-progress"]
    command = [ringport, "bench", address, "--engine", "epoll", *sizes, *counts]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    if done.returncode != 0:
        raise RuntimeError(f"the load failed: {done.stdout}{done.stderr}")


def bounds(engine, calls, messages):
    """What holds on this engine: pairs of a sentence and whether it is true."""

    def count(names):
        return sum(calls.get(name, 0) for name in names)

    if engine == "io_uring":
        received, sent, enters = count(RECEIVE), count(SEND), calls.get("io_uring_enter", 0)
        yield f"{received} calls of recv in all, at most {PROBE}", received <= PROBE
        yield f"{sent} calls of send in all, at most one for an enter", sent <= PROBE + enters
        yield f"{enters / messages:.3f} io_uring_enter for a message, below 0.2", 0 < enters < 0.2 * messages
    else:
        moved, waits = count(RECEIVE + SEND), count(WAIT)
        yield f"{moved / messages:.3f} calls of recv and send for a message, below 2.1", 0 < moved < 2.1 * messages
        yield f"{waits / messages:.3f} epoll_wait for a message, below 0.2", 0 < waits < 0.2 * messages


def holds(ringport, engine):
    for _ in range(TRIES):
        calls, messages, table = trace(ringport, engine)
        print(f"{engine}: {messages} messages\n{table}")
        if messages < MESSAGES:
            print(f"{engine}: FAILED: {messages} messages of {MESSAGES}")
            return False
        results = list(bounds(engine, calls, messages))
        for sentence, true in results:
            print(f"{engine}: {'ok' if true else 'FAILED'}: {sentence}")
        if all(true for _, true in results):
            return True
    return False


def main(ringport):
    if shutil.which("strace") is None:
        print("skipped: strace is not installed")
        return 77
    attempt = subprocess.run(["strace", "--output", os.devnull, "true"], capture_output=True, text=True)
    if attempt.returncode != 0:
        print(f"skipped: strace may not trace here: {attempt.stderr.strip()}")
        return 77
    rows = json.loads(subprocess.run([ringport, "engines", "--json"], capture_output=True, check=True).stdout)
    engines = [row["name"] for row in rows if row["available"]]
    return 0 if engines and all([holds(ringport, engine) for engine in engines]) else 1


if __name__ == "__main__":
    sys.exit(main(os.path.abspath(sys.argv[1])))
