#!/usr/bin/env python3
"""Says where the instructions of an HTTP request go, in hyper on ringport and in hyper on tokio.

    scripts/profile_http.py                      # both, as a table
    scripts/profile_http.py --deadline 10        # with hyper's deadline for the head of a request

Counts instructions in user space with valgrind's callgrind, so that the figures do not depend on what else the machine
does. What a server needs for its start is counted in a run without requests, and taken off. The servers and the load are
those of measure_http.py, which says what a request costs in processor time, kernel included. Needs valgrind and wrk.

Code that the compiler has put into another function counts where it was written; what is the standard library's counts
for the function that it is in.
"""

import argparse
import collections
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import measure  # noqa: E402 (beside this file, wherever that is called from)
import measure_http  # noqa: E402

LIMIT = 60
# Parts of a program, and what their source files or, for the standard library's code, the functions around it look like.
PARTS = [
    ("ringport: engine and buffers", r"ringport-engine/|ringport_engine::|/io-uring-|io_uring::"),
    ("ringport: tasks and streams", r"crates/ringport/src/aio/|ringport::aio::"),
    ("ringport: worker and sessions", r"crates/ringport/src/|ringport::"),
    ("tokio and mio", r"/(tokio|mio|hyper-util|slab|parking_lot)-|tokio::|mio::|hyper_util::"),
    ("http, httparse, bytes", r"/(http|httparse|bytes|http-body|http-body-util)-\d|httparse::|http::|bytes::"),
    ("hyper", r"/(hyper|itoa|smallvec|httpdate)-\d|hyper::"),
    ("memory allocation", r"malloc"),
    ("copying memory", r"mem(move|cpy|set|cmp)"),
]
LISTENING = re.compile(r"listening on \S+:\d+ with (\S+)")
STANDARD = re.compile(r"/rustc/|/library/(core|alloc|std)/")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--connections", type=int, default=16, help="connections of the load (default: 16)")
    add("--seconds", type=int, default=3, help="length of the load (default: 3)")
    add("--deadline", type=int, default=0, metavar="SECONDS", help="for the head of a request; 0 is none (default)")
    add("--servers", default="ringport-uring,ringport-epoll,tokio", help="which (default: %(default)s)")
    add("--target", default=measure_http.TARGET, metavar="DIR", help="cargo's folder (default: %(default)s)")
    options = parser.parse_args()
    try:
        print(table(profiles(options)))
    except (measure_http.CannotMeasure, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        print(f"profile_http: {error}", file=sys.stderr)
        return 1
    return 0


def profiles(options):
    """For each server: instructions a request by part."""
    measure_http.build(options.target)
    for tool in ("valgrind", "wrk"):
        if not shutil.which(tool):
            raise measure_http.CannotMeasure(f"{tool} is missing: apt-get install {tool}")
    found = {}
    for label in options.servers.split(","):
        idle, _ = count(options, label, load=False)
        busy, requests = count(options, label, load=True)
        busy.subtract(idle)
        found[label] = {part: cost / requests for part, cost in busy.items()}
    return found


def count(options, label, load):
    """Runs a server under callgrind. Returns the instructions by part and the number of requests."""
    requests = 0
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "callgrind.out")
        command = ["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={out}"]
        port = free_port()
        command += measure_http.command(options.target, label, options.deadline, port)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                poke_until(port, lambda: select.select([server.stdout], [], [], 0)[0])
                check_that_it_serves(server, label)
                if load:
                    wrk = ["wrk", "--threads", "1", "--connections", str(options.connections)]
                    wrk += ["--duration", f"{options.seconds}s", f"http://127.0.0.1:{port}/"]
                    done = subprocess.run(wrk, capture_output=True, text=True, timeout=options.seconds + LIMIT)
                    requests = measure_http.figures(done.stdout)["requests"]
                server.terminate()
                poke_until(port, lambda: server.poll() is not None)
            finally:
                server.kill()
        with open(out, encoding="utf-8") as lines:
            return parts(lines), requests


def check_that_it_serves(server, label):
    """Reads with what a server says that it listens."""
    line = server.stdout.readline()
    found = LISTENING.match(line)
    if not found or found[1] != (measure_http.SERVERS[label][1] or measure_http.TOKIO):
        raise ValueError(f"{label} does not serve: {line.strip()!r}")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def poke_until(port, is_done):
    """Connects until something has happened. Under valgrind one thread runs at a time, and one that waits in
    io_uring_enter keeps the others, and signals, from running: somebody has to end its wait."""
    end = time.monotonic() + LIMIT
    while not is_done():
        if time.monotonic() > end:
            raise ValueError("the server under valgrind does nothing more")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            pass
        time.sleep(0.1)


def parts(lines):
    """Instructions by part, from the lines of callgrind's file (its format is described in valgrind's manual)."""
    names, files = {}, {}
    total = collections.Counter()
    function = own_file = file = ""
    inclusive = False
    for line in lines:
        key, equals, value = line.rstrip("\n").partition("=")
        if line[:1] in "+-*0123456789" and not equals:
            # The line after `calls=` is what was called, which is counted where it is.
            if not inclusive and " " in line:
                total[part(file, function)] += int(line.split()[1])
            inclusive = False
        elif key == "fn":
            function, file = resolve(names, value), own_file
        elif key == "fl":
            own_file = file = resolve(files, value)
        elif key in ("fi", "fe"):
            file = resolve(files, value)
        elif key in ("cfi", "cfl"):
            resolve(files, value)
        elif key == "cfn":
            resolve(names, value)
        elif key == "calls":
            inclusive = True
    return total


def resolve(table_of_names, value):
    """`(3) name` gives number 3 a name, `(3)` is that name."""
    number, _, name = value.partition(" ")
    if name:
        table_of_names[number] = name
    return table_of_names.get(number, "")


def part(file, function):
    text = function if STANDARD.search(file) else file
    return next((name for name, pattern in PARTS if re.search(pattern, text)), "the rest")


def table(found):
    names = [*(name for name, _ in PARTS), "the rest"]
    rows = [[name, *(f"{costs.get(name, 0):,.0f}" for costs in found.values())] for name in names]
    rows.append(["**all**", *(f"**{sum(costs.values()):,.0f}**" for costs in found.values())])
    return measure.table(["instructions a request in user space", *found], rows)


if __name__ == "__main__":
    sys.exit(main())
