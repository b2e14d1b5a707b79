#!/usr/bin/env python3
"""Measures HTTP/1.1 plaintext by hyper on ringport beside hyper on tokio, and says where it stands.

    scripts/measure_http.py --rounds 8 --markdown bench-out/http.md
    scripts/measure_http.py --rounds 1 --seconds 1           # only to see that it works
    scripts/measure_http.py --analyse bench-out/http-*.jsonl

Builds both servers (benches/http: one thread each, the same service, the same settings of hyper), installs wrk from
Debian if it is missing and allowed, and lets the servers take turns: one server on core 0, wrk with one thread and
connections kept alive on core 1, the cells and servers of a round in random order, each of ours a second time as a
control. Cells: connections, without and with hyper's deadline for the head of a request, which sets a timer for each
request. What counts is the server's processor time a request, as the kernel's scheduler has it, in ratios of one round;
what every number means is said in ratios.py. Needs two cores, Linux, and a quiet machine: build nothing meanwhile. The
exit code is 0 whatever the verdicts are, and 1 only if nothing could be measured.
"""

import argparse
import datetime
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time

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
# Connections: how many times the requests of tokio in a second of processor time there should be at least.
WANTED = {64: 1.0, 512: 1.1}
LISTENING = re.compile(r"listening on \S+:(\d+) with (\S+)")


def main():
    options = parse_arguments()
    ratios.NOISE_PCT = options.noise
    return beside.report_on("measure_http", options, measure_all, report)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--rounds", type=int, default=8, help=f"interleaved rounds; at least {ratios.FEWEST_ROUNDS} for a verdict (default: 8)")
    add("--seconds", type=int, default=2, help="length of one run, which wrk wants whole (default: 2)")
    add("--connections", default=",".join(map(str, WANTED)), help="connections of the cells (default: %(default)s)")
    add("--deadline", choices=["both", "without", "with"], default="both", help="hyper's deadline for the head of a request")
    add("--servers", default=",".join(SERVERS), help="only these servers (default: %(default)s)")
    add("--target", default=TARGET, metavar="DIR", help="cargo's folder, where the servers are built (default: %(default)s)")
    add("--noise", type=float, default=ratios.NOISE_PCT, metavar="PCT", help="drop runs during which other work used more than this much of a core (default: %(default)s)")
    add("--markdown", default="", metavar="FILE", help="write the report there, too")
    add("--analyse", nargs="+", default=[], metavar="FILE", help="measure nothing, report on these results")
    options = parser.parse_args()
    unknown = set(options.servers.split(",")) - SERVERS.keys()
    if unknown:
        parser.error(f"no such server: {', '.join(sorted(unknown))}")
    return options


# Measuring.


def measure_all(options):
    """Runs all rounds and returns the names of the files with their results."""
    if (os.cpu_count() or 1) < 2:
        raise CannotMeasure("the server and the load need a core each")
    install_wrk()
    build(options.target)
    folder = os.path.join(ROOT, "bench-out")
    os.makedirs(folder, exist_ok=True)
    name = os.path.join(folder, datetime.datetime.now().strftime("http-%Y%m%d-%H%M%S.jsonl"))
    deadlines = {"both": [0, HEADER_SECONDS], "without": [0], "with": [HEADER_SECONDS]}[options.deadline]
    pairs = [(int(count), seconds) for count in options.connections.split(",") for seconds in deadlines]
    source = random.Random(ratios.SEED)
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        for connections, seconds in source.sample(pairs, len(pairs)):
            # The servers of a cell follow each other, so that they are compared under the same conditions.
            labels = options.servers.split(",")
            for label in source.sample(labels, len(labels)):
                record = run_one(options, label, connections, seconds) | {"round": number}
                with open(name, "a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
    return [name]


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


def run_one(options, label, connections, seconds):
    """One run: a line of the results."""
    with open("/proc/sys/net/ipv4/tcp_congestion_control", encoding="utf-8") as file:
        record = {"cell": cell_name(connections, seconds), "label": label, "cc": file.read().strip()}
    pinned = ["taskset", "-c", "0", *command(options.target, label, seconds)]
    with subprocess.Popen(pinned, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = f"http://127.0.0.1:{port_of(server, label)}/"
            return record | load(address, connections, options.seconds, server.pid)
        except (ValueError, subprocess.SubprocessError) as error:
            return record | {"error": str(error)}
        finally:
            server.kill()


def command(target, label, deadline, port=0):
    """How a server is started, with so many seconds for the head of a request."""
    program, engine = SERVERS[label]
    return [os.path.join(target, "release", program), f"127.0.0.1:{port}", str(deadline), *filter(None, [engine])]


def port_of(server, label):
    """Where a server says that it listens, and with what."""
    line = server.stdout.readline()
    found = LISTENING.match(line)
    if not found or found[2] != (SERVERS[label][1] or TOKIO):
        raise ValueError(f"{label} does not serve: {line.strip()!r}")
    return found[1]


def load(address, connections, seconds, server):
    """Runs wrk, and says what it saw and what the server used meanwhile, and everybody else."""
    command = ["taskset", "-c", "1", "wrk", "--threads", "1", "--connections", str(connections), "--latency"]
    command += ["--duration", f"{seconds}s", address]
    began, busy, used, own = time.monotonic(), beside.busy_seconds(), beside.cpu_seconds(server), cpu_of_children()
    user, system = ticks_of(server)
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30)
    elapsed = time.monotonic() - began
    used, own, busy = beside.cpu_seconds(server) - used, cpu_of_children() - own, beside.busy_seconds() - busy
    user, system = (after - before for after, before in zip(ticks_of(server), (user, system)))
    if done.returncode != 0:
        raise ValueError(f"wrk: {done.stderr.strip() or done.stdout.strip()}")
    found = figures(done.stdout)
    found["other_pct"] = round((busy - used - own) / elapsed * 100, 1)
    found["kernel_pct"] = round(100 * system / max(user + system, 1), 1)
    found[ratios.CPU] = round(used / found["requests"] * 1e6, 4)
    return found


def figures(text):
    """What wrk reports. Answers that are missing or wrong make a run worthless."""
    requests = re.search(r"(\d+) requests in", text)
    if not requests or int(requests[1]) == 0:
        raise ValueError(f"wrk had no answers: {text.strip()}")
    wrong = re.search(r"(Socket errors|Non-2xx).*", text)
    if wrong:
        raise ValueError(wrong[0])
    units = {"us": 1, "ms": 1e3, "s": 1e6}
    times = {name: re.search(rf"^\s+{name}%\s+([\d.]+)(us|ms|s)\s*$", text, re.MULTILINE) for name in ("50", "99")}
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])
    found = {f"p{name}_us": float(time[1]) * units[time[2]] for name, time in times.items() if time}
    return {"requests": int(requests[1]), "msgs_s": rate} | found


def ticks_of(process):
    """Ticks in user space and in the kernel (proc_pid_stat(5), fields 14 and 15)."""
    with open(f"/proc/{process}/stat", encoding="utf-8") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return int(fields[11]), int(fields[12])


def cpu_of_children():
    """Seconds that children which have ended were running: every wrk, and the servers before this one."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


# The report. Every cell that was tried appears in it, also those that fall short or have no result.


def report(runs):
    cells = sorted(runs.cells, key=lambda cell: (ratios.connections(cell), cell))
    return "\n\n".join(part for part in (beside.heading(runs), medians(runs, cells), verdicts(runs, cells), measure.failures(runs)) if part) + "\n"


def medians(runs, cells):
    rows = []
    for cell in cells:
        for label in (label for label in SERVERS if label in runs.cells[cell]):
            cpu = runs.median(cell, label)
            fields = ("kernel_pct", "msgs_s", "p50_us", "p99_us")
            values = [1e6 / cpu if cpu else None, cpu, *(runs.median(cell, label, name) for name in fields)]
            rows.append([cell, label, *map(measure.number, values)])
    header = ["cell", "server", "requests a second of server CPU", "CPU, µs a request", "of it in the kernel, %", "requests a second", "p50, µs", "p99, µs"]
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
