#!/usr/bin/env python3
"""Measures HTTP/1.1 plaintext by hyper on ringport beside hyper on tokio, and says where it stands.

    scripts/measure_http.py --rounds 8 --markdown bench-out/http.md
    scripts/measure_http.py --rounds 1 --ms 200              # only to see that it works
    scripts/measure_http.py --analyse bench-out/http-*.jsonl

Builds both servers (benches/http: one thread each, the same service, the same settings of hyper), installs wrk from
Debian if it is missing and allowed, and lets the servers take turns of 40 ms: one server on core 0, wrk with one thread
and connections kept alive on core 1, in an order that changes, each of ours a second time as a control. Cells:
connections, without and with hyper's deadline for the head of a request, which sets a timer for each request. What
counts is the server's processor time a request, as the kernel's scheduler has it, in ratios of one round; what every
number means is said in ratios.py. Needs two cores, Linux, and a quiet machine: build nothing meanwhile. The
exit code is 0 whatever the verdicts are, and 1 only if nothing could be measured.
"""

import argparse
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import beside  # noqa: E402 (beside this file, wherever that is called from)
import measure  # noqa: E402
import ratios  # noqa: E402
from beside import CannotMeasure  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
URING, EPOLL, TOKIO = "ringport-uring", "ringport-epoll", "tokio"
TWIN = "-2"  # the same command under a second name: the control
SERVERS = {
    URING: ("http-ringport", "io_uring"),
    URING + TWIN: ("http-ringport", "io_uring"),
    EPOLL: ("http-ringport", "epoll"),
    EPOLL + TWIN: ("http-ringport", "epoll"),
    TOKIO: ("http-tokio", ""),
}
HEADER_SECONDS = 10
WRK_START_SECONDS = 0.3
WRK_SECONDS_MAX = 120
# Connections: how many times the requests of tokio in a second of processor time there should be at least.
WANTED = {64: 1.0, 512: 1.1}


def main():
    return beside.report_on("measure_http", parse_arguments(), measure_all, report)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    beside.common_options(parser, binary=False)
    add("--ms", type=int, default=1000, help="milliseconds of load for each server in a round (default: %(default)s)")
    add("--connections", default=",".join(map(str, WANTED)), help="connections of the cells (default: %(default)s)")
    add("--deadline", choices=["both", "without", "with"], default="both", help="hyper's deadline for the head of a request")
    add("--servers", default=",".join(SERVERS), help="only these servers (default: %(default)s)")
    add("--target", default=TARGET, metavar="DIR", help="cargo's folder, where the servers are built (default: %(default)s)")
    options = parser.parse_args()
    unknown = set(options.servers.split(",")) - SERVERS.keys()
    if unknown:
        parser.error(f"no such server: {', '.join(sorted(unknown))}")
    return options


# Measuring.


def measure_all(options):
    """Runs all rounds and returns the names of the files with their results."""
    install_wrk()
    build(options.target)
    congestion = beside.enter_namespace(options.cc)
    bench = beside.Bench("http", congestion)
    deadlines = {"both": [0, HEADER_SECONDS], "without": [0], "with": [HEADER_SECONDS]}[options.deadline]
    labels = options.servers.split(",")
    for connections, deadline in itertools.product(map(int, options.connections.split(",")), deadlines):
        commands = {label: command(options.target, label, deadline) for label in labels}
        words = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{WRK_SECONDS_MAX}s"]
        load = beside.Load(lambda port, *_: [*words, f"http://127.0.0.1:{port}/"], figures, WRK_START_SECONDS, signal.SIGINT)
        with beside.Servers(commands) as servers:
            bench.rounds_in_slices(options.rounds, cell_name(connections, deadline), labels, servers, load, options.ms)
    return [bench.file]


def build(target):
    """Builds the servers."""
    command = ["cargo", "build", "--release", "--quiet", "--package", "http-peers", "--target-dir", target]
    if subprocess.run(command, cwd=ROOT, stdout=sys.stderr).returncode != 0:
        raise CannotMeasure("the servers cannot be built")


def install_wrk():
    if not shutil.which("wrk"):
        subprocess.run(["apt-get", "install", "--yes", "wrk"], stdout=sys.stderr)
    if not shutil.which("wrk"):
        raise CannotMeasure("wrk is missing: apt-get install wrk")


def cell_name(connections, seconds):
    return f"http c{connections}" + (" with a deadline" if seconds else "")


def command(target, label, deadline, port="{port}"):
    """How a server is started, with so many seconds for the head of a request."""
    program, engine = SERVERS[label]
    return [os.path.join(target, "release", program), f"127.0.0.1:{port}", str(deadline), *filter(None, [engine])]


def figures(text):
    """What wrk reports. Answers that are missing or wrong make a run worthless."""
    requests = re.search(r"(\d+) requests in", text)
    if not requests or int(requests[1]) == 0:
        raise ValueError(f"wrk had no answers: {text.strip()}")
    wrong = re.search(r"(Socket errors|Non-2xx).*", text)
    if wrong:
        raise ValueError(wrong[0])
    return {"requests": int(requests[1])}


# The report. Every cell that was tried appears in it, also those that fall short or have no result.


def report(runs):
    cells = sorted(runs.cells, key=lambda cell: (ratios.connections(cell), cell))
    return "\n\n".join(part for part in (beside.heading(runs), medians(runs, cells), verdicts(runs, cells), measure.failures(runs)) if part) + "\n"


def medians(runs, cells):
    rows = []
    for cell in cells:
        for label in (label for label in SERVERS if label in runs.cells[cell]):
            cpu = runs.median(cell, label)
            rows.append([cell, label, *map(measure.number, [1e6 / cpu if cpu else None, cpu])])
    header = ["cell", "server", "requests a second of server CPU", "CPU, µs a request"]
    return "### Medians\n\n" + measure.table(header, rows)


def verdicts(runs, cells):
    """How many requests ours answers in the processor time in which tokio answers one.

    The inverse of the ratio of processor times, so that an upper bound of that is a lower bound of this.
    """
    rows = []
    for cell in cells:
        wanted = WANTED.get(ratios.connections(cell), 1.0)
        for label in (URING, EPOLL):
            ratio = ratios.paired(runs, cell, label, TOKIO)
            noise = ratios.control(runs, cell, label, label + TWIN)
            if ratio is None:
                continue
            answer = ratios.within(ratio, 1 / wanted, noise)
            control = f"{1 / noise.upper:.3f}" if noise else "–"
            times = f"{1 / ratio.median:.3f} (≥ {1 / ratio.upper:.3f})"
            rows.append([cell, label, times, control, f"{wanted:g}", measure.verdict(answer)])
    if not rows:
        return ""
    return (
        f"### Requests a second of server CPU, ringport / tokio\n\n"
        f"{measure.table(['cell', 'server', 'ratio', 'control', 'wanted', 'reached'], rows)}\n\n"
        "The median of paired rounds and its 95 % lower bound. *control*: the same bound between two identical servers. "
        f"*reached*: bound ≥ wanted × control; no verdict on fewer than {ratios.FEWEST_ROUNDS} rounds."
    )


if __name__ == "__main__":
    sys.exit(main())
