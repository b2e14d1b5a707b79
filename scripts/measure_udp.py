#!/usr/bin/env python3
"""Measures how many datagrams an echo server answers in a second of processor time, beside a plain loop and tokio.

    cargo build --release && scripts/measure_udp.py --markdown bench-out/udp.md
    scripts/measure_udp.py --rounds 1 --ms 200        # only to see that it works

Two workloads of 64 bytes: *bursts* (few peers with many datagrams under way each) and *singles* (many peers with one
each). The load is `ringport bench --udp` on core 1, the servers take turns of 40 ms on core 0, in an order that changes.
What counts is the server's processor time a datagram that came back, as the kernel's scheduler has it, in ratios of one
round; what every number means is said in ratios.py. Needs root for a network namespace, and a quiet machine. The exit
code is 0 whatever the verdicts are, and 1 only if nothing could be measured.
"""

import argparse
import json
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import beside  # noqa: E402 (beside this file, wherever that is called from)
import measure  # noqa: E402
import ratios  # noqa: E402
from beside import CannotMeasure  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PEERS = os.path.join(ROOT, "benches", "peers")
# Workload: sockets, and datagrams under way on each.
WORKLOADS = {"bursts": (8, 32), "singles": (200, 1)}
# Workload: how many times as many as each peer ringport should answer.
WANTED = {"bursts": 1.5, "singles": 1.0}
OURS = {"io_uring": "io_uring", "io_uring" + measure.TWIN: "io_uring", "epoll": "epoll", "epoll" + measure.TWIN: "epoll"}
PROGRAMS = {"loop": "udp-loop", "tokio": "udp-tokio"}
START_SECONDS = 0.3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside.common_options(parser)
    parser.add_argument("--ms", type=int, default=1000, help="milliseconds of load for each server in a round (default: %(default)s)")
    return beside.report_on("measure_udp", parser.parse_args(), measure_all, report)


def measure_all(options):
    """Runs all rounds and returns the names of the files with their results."""
    servers = commands(options)
    bench = beside.Bench("udp", beside.enter_namespace(options.cc))
    for workload, (connections, depth) in WORKLOADS.items():
        words = [os.path.abspath(options.binary), "bench", "--udp", "--json", "-", "--size", "64", "--log", "off"]
        words += ["--connections", str(connections), "--pipeline", str(depth)]
        # It ends with 1 if a datagram was lost, which is reported here.
        load = beside.Load(
            lambda port, _, seconds: [*words, f"127.0.0.1:{port}", "--duration", f"{seconds:.3f}s"], said, START_SECONDS, exit_codes=(0, 1)
        )
        with beside.Servers(servers) as started:
            bench.rounds_in_slices(options.rounds, workload, list(servers), started, load, options.ms)
    return [bench.file]


def commands(options):
    """The servers: name and command."""
    if not os.access(options.binary, os.X_OK):
        raise CannotMeasure(f"{options.binary} is missing: cargo build --release")
    target = os.path.join(PEERS, "target")
    build = ["cargo", "build", "--release", "--quiet", "--target-dir", target]
    if subprocess.run(build, cwd=PEERS).returncode != 0:
        raise CannotMeasure("the peers cannot be built")
    serve = [os.path.abspath(options.binary), "serve", "echo", "--udp", "127.0.0.1:{port}", "--log", "off", "--engine"]
    found = {label: [*serve, engine] for label, engine in OURS.items()}
    return found | {label: [os.path.join(target, "release", name), "127.0.0.1:{port}"] for label, name in PROGRAMS.items()}


def said(text):
    """What the load saw. A datagram that came back counts."""
    figures = json.loads(text)["results"][0]
    return {"requests": figures["returned"], "sent": figures["sent"], "lost": figures["lost"]}


def report(runs):
    rows, verdicts = [], []
    for workload in (workload for workload in WORKLOADS if workload in runs.cells):
        for label in ("io_uring", "epoll", *PROGRAMS):
            cpu = runs.median(workload, label)
            lost, sent = (sum(runs.values(workload, label, field).values()) for field in ("lost", "sent"))
            rows.append([workload, label, measure.number(1e6 / cpu if cpu else None), f"{lost:,.0f} of {sent:,.0f}"])
        for label in ("io_uring", "epoll"):
            noise = ratios.control(runs, workload, label, label + measure.TWIN)
            for peer in PROGRAMS:
                ratio = ratios.paired(runs, workload, label, peer)
                if ratio is None:
                    continue
                reached = measure.verdict(ratios.within(ratio, 1 / WANTED[workload], noise))
                times, control = f"{1 / ratio.median:.3f} (≥ {1 / ratio.upper:.3f})", f"{1 / noise.upper:.3f}" if noise else "–"
                verdicts.append([workload, label, peer, times, control, f"{WANTED[workload]:g}", reached])
    return "\n\n".join(part for part in (
        beside.heading(runs),
        "### Datagrams a second of server CPU, medians\n\n" + measure.table(["load", "server", "datagrams", "lost"], rows),
        "### Beside a loop and tokio\n\n"
        + measure.table(["load", "server", "peer", "times as many", "control", "wanted", "reached"], verdicts)
        + "\n\nThe median of paired rounds and its 95 % lower bound. *control*: the same bound between two identical servers. "
        f"*reached*: bound ≥ wanted × control; no verdict on fewer than {ratios.FEWEST_ROUNDS} rounds.",
        measure.failures(runs),
    ) if part) + "\n"


if __name__ == "__main__":
    sys.exit(main())
