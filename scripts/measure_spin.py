#!/usr/bin/env python3
"""Measures what polling before parking (`--spin`) gains in latency and costs or spares in processor time.

    scripts/measure_spin.py --rounds 6 --markdown bench-out/spin.md
    scripts/measure_spin.py --analyse bench-out/spin-*.jsonl

Each engine without polling, as it polls by itself, and with a window that was asked for: echoes of 64 bytes on 1 connection and on 50 as fast as they go, on 50 at 20,000 a second
in all, and 50 connections on which nothing happens for a while. The servers run on core 0, the loads on core 1, in a network
namespace of their own.

Echoes as fast as they go are measured in turns of 100 ms, in an order that changes: so long that what waits meanwhile, one
message on each connection, and the first messages of a turn, before a server polls again, are a few of thousands. A server
whose load is stopped polls once more, for the window, and then parks, so that it takes nothing from the others; it is not
stopped itself. Its share of a core is that of its own turns. At a fixed rate a load cannot be stopped, and connections on
which nothing happens have no load: those are measured one after another, in interleaved rounds and in another order each time.

Needs root, the lab (built when it is missing) and a quiet machine. The exit code is 1 only if nothing could be measured. Six
rounds take about two minutes.
"""

import argparse
import os
import socket
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import beside  # noqa: E402 (beside this file, wherever that is called from)
import measure  # noqa: E402
import ratios  # noqa: E402

P50, SHARE = "p50_us", beside.SHARE
IDLE, IDLE_CONNECTIONS, IDLE_SECONDS = "50 idle", 50, 0.3
# Cell: connections, and what the load is told.
CELLS = {
    "1 connection": (1, ["--mode=echo", "--conns=1", "--size=64", "--depth=1"]),
    "50 connections": (50, ["--mode=echo", "--conns=50", "--size=64", "--depth=1"]),
    "50, 2,000/s": (50, ["--mode=echo", "--conns=50", "--size=64", "--depth=1", "--rate=2000"]),
    "50, 20,000/s": (50, ["--mode=echo", "--conns=50", "--size=64", "--depth=1", "--rate=20000"]),
    IDLE: (IDLE_CONNECTIONS, []),
}
IN_TURNS = ["1 connection", "50 connections"]
TURN_SECONDS = 0.1
ITSELF, SPINS = " by itself", " spins"
HEADER = ["load", "server", "p50 µs", "itself", "asked", "CPU, µs a message", "itself", "asked", "CPU, % of a core", "itself", "asked"]
HEADER += ["p50: itself / not", "asked / not", "control", "CPU: itself / not", "asked / not", "control"]
ENGINES = {measure.URING: "io_uring", measure.EPOLL: "epoll"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside.common_options(parser)
    beside.lab_options(parser)
    parser.add_argument("--cells", default="", help="only cells whose name contains this")
    parser.add_argument("--spin", default="50us", help="how long it polls (default: 50us)")
    return beside.report_on("measure_spin", parser.parse_args(), run_all, report)


def run_all(options):
    """Measures, and returns the name of the file with the results."""
    if not os.access(options.binary, os.X_OK):
        raise beside.CannotMeasure(f"{options.binary} is missing: cargo build --release")
    beside.prepare_lab(options.lab, options.lab_source)
    congestion = beside.enter_namespace(options.cc)
    bench = beside.Bench("spin", congestion)
    binary = os.path.abspath(options.binary)
    servers = {}
    for label, engine in ENGINES.items():
        words = [binary, "serve", "echo", "--listen", "0.0.0.0:{port}", "--engine", engine, "--log", "error"]
        servers[label] = servers[label + measure.TWIN] = [*words, "--spin", "0"]
        servers[label + ITSELF] = [*words, "--spin", "auto"]
        servers[label + SPINS] = [*words, "--spin", options.spin]
    for cell in (cell for cell in CELLS if options.cells in cell):
        with beside.Servers(servers) as started:
            measure_cell(options, bench, cell, started)
    return [bench.file]


def measure_cell(options, bench, cell, servers):
    connections, words = CELLS[cell]
    labels = list(servers.commands)
    if cell in IN_TURNS:
        load = beside.lab_load(options, words, connections, 64)._replace(slice_seconds=TURN_SECONDS)
        bench.rounds_in_slices(options.rounds, cell, labels, servers, load, options.ms)
        return
    load = idle if cell == IDLE else lambda port, pid: beside.loadgen(options, port, pid, words)
    for number, _, label in bench.rounds(options.rounds, [cell], labels):
        bench.ask(number, cell, label, servers, load)


def idle(port, pid):
    """Connections that were used once: what they cost in the time after."""
    sockets = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(IDLE_CONNECTIONS)]
    for one in sockets:
        one.sendall(b"once")
        if one.recv(16) != b"once":
            raise beside.CannotMeasure("a wrong echo")
    time.sleep(0.05)
    before, begin = beside.cpu_seconds(pid), time.monotonic()
    time.sleep(IDLE_SECONDS)
    spent = beside.cpu_seconds(pid) - before
    for one in sockets:
        one.close()
    # A server that did nothing at all was measured, too.
    return {SHARE: max(100 * spent / (time.monotonic() - begin), 1e-6)}


def bounded(ratio):
    return f"{ratio.median:.3f} (≤ {ratio.upper:.3f})" if ratio else "–"


def shown(runs, cell, label, field):
    value = runs.median(cell, label, field)
    return "–" if value is None else measure.number(round(value, 4))


def report(runs):
    rows = []
    for cell in (cell for cell in CELLS if cell in runs.cells):
        for label in (label for label in ENGINES if label in runs.cells[cell]):
            row = [cell, label]
            for field in (P50, ratios.CPU, SHARE):
                row += [shown(runs, cell, name, field) for name in (label, label + ITSELF, label + SPINS)]
            # Nothing has a latency or a message where nothing happens.
            for field in (P50, ratios.CPU) if cell != IDLE else ():
                row += [bounded(ratios.paired(runs, cell, name, label, field)) for name in (label + ITSELF, label + SPINS)]
                noise = ratios.control(runs, cell, label, label + measure.TWIN, field)
                row.append(f"{noise.upper:.3f}" if noise else "–")
            rows.append(row + ["–"] * (len(HEADER) - len(row)))
    return (
        f"{beside.heading(runs)}\n\n### Polling before parking, both ways\n\n{measure.table(HEADER, rows)}\n\n"
        "*itself*: where it polls by itself; *asked*: with a window. The last six: the median of paired rounds, divided by the "
        "server that does not poll, and its 95 % upper bound. *control*: the same bound between two identical servers that do "
        f"not poll.\n\n{measure.failures(runs)}"
    )


if __name__ == "__main__":
    sys.exit(main())
