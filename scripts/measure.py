#!/usr/bin/env python3
"""Measures ringport beside hand-written servers and runtimes, and says where it stands.

    scripts/measure.py --suite matrix --rounds 6 --markdown bench-out/matrix.md
    scripts/measure.py --analyse bench-out/*.jsonl --markdown bench-out/all.md

It drives the lab (a load generator and the other servers), in a network namespace of its own: the servers on core 0, the
loads on core 1. In a round of echo or of short connections every server has its load, and they take turns of 40 ms and
more, so that what the machine's speed does in the meantime it does to all of them. A fixed rate does not wait for its turn,
and idle connections have no load: those are measured one after another, in an order that changes. Needs root for the
namespace, and a quiet machine: build nothing meanwhile. What every number means is said in ratios.py. The exit code is 0
whatever the verdicts are, and 1 only if nothing could be measured. All servers in all cells (`--suite full`) take 5 minutes a
round; a round of `churn` takes 15 seconds, of `open` 30, of `idle` 40.
"""

import argparse
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import beside  # noqa: E402 (beside this file, wherever that is called from)
import ratios  # noqa: E402
from beside import CannotMeasure  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
URING, EPOLL = "ringport-uring", "ringport-epoll"
TWIN = "-2"  # the same command under a second name: the control
TASKS = "ringport-tasks"  # --api async on io_uring
BEFORE = {URING: "before-uring", EPOLL: "before-epoll"}  # an older build, with --before
ENVELOPE = ["limit", "limit-inc", "limit-poll", "epoll-c", "mio"]
READINESS = ["epoll-c", "mio"]
RUNTIMES = ["tokio", "monoio", "compio", "glommio", "tokio-uring", "smol", "asio", "libuv"]
ENVELOPE_BOUND = 1.05
TASKS_BOUND = 1.05
LEAD_OVER_TOKIO = 1.2  # with at least this many connections:
LEAD_CONNECTIONS = 1000
LEAD = f"tokio by {LEAD_OVER_TOKIO}"

LATENCIES = [("p50, µs", "p50_us"), ("p99, µs", "p99_us")]

MAX_BYTES_UNDER_WAY = 32 << 20

MATRIX = [f"echo c{count} s{size} p1" for count in (1, 50, 1000, 8000) for size in (64, 1024, 16384)] + ["echo c50 s64 p16"]
# Cells, whose names say what the load does, and the servers beside ringport.
SUITES = {
    "matrix": (MATRIX, [*ENVELOPE, "tokio"]),
    "runtimes": (MATRIX, RUNTIMES),
    "full": (MATRIX, ENVELOPE + RUNTIMES),
    "idle": (["idle c8000 s64"], ENVELOPE + RUNTIMES),
    "open": ([f"echo c50 s64 p1 rate={rate}" for rate in (50000, 150000)], ENVELOPE + RUNTIMES),
    "churn": (["churn c64 s64"], ENVELOPE + RUNTIMES),
}


def main():
    return beside.report_on("measure", parse_arguments(), measure, report)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--suite", choices=[*SUITES, "all"], default="matrix")
    beside.common_options(parser)
    beside.lab_options(parser)
    add("--cells", default="", help="only cells whose name contains one of these, as in 'c50 s64,c1000'")
    add("--servers", default="", help="only these of the other servers")
    add("--uring", default="", help="another command for the io_uring server; {port} is replaced")
    add("--epoll", default="", help="another command for the epoll server")
    add("--tasks", action="store_true", help="also the server written with tasks (--api async), beside the one with handlers")
    add("--before", default="", metavar="BINARY", help="also an older build, to see what changes cost")
    return parser.parse_args()


def measure(options):
    """Runs the suites and returns the names of the files with their results."""
    ours = ringport_commands(options)
    beside.prepare_lab(options.lab, options.lab_source)
    congestion = beside.enter_namespace(options.cc)
    suites = [name for name in SUITES if name != "full"] if options.suite == "all" else [options.suite]
    return [measure_suite(options, suite, ours, congestion) for suite in suites]


def measure_suite(options, suite, ours, congestion):
    """All rounds of a suite, cell by cell. Returns the name of the file with the results.

    Where the servers take turns, each lasts for some rounds (`beside.ROUNDS_A_START`); elsewhere it is started for each run.
    """
    cells, others = SUITES[suite]
    cells = [cell for cell in cells if any(word in cell for word in options.cells.split(","))]
    if not cells:
        raise CannotMeasure(f"suite {suite} has no cell that matches {options.cells!r}")
    lab = beside.lab_servers(options.lab)
    wanted = options.servers.split(",") if options.servers else others
    commands = ours | {name: [*lab[name], "--port={port}"] for name in others if name in wanted}
    bench = beside.Bench(suite, congestion)
    for cell in cells:
        with beside.Servers(commands) as servers:
            measure_cell(options, bench, cell, servers, list(commands))
    return bench.file


def measure_cell(options, bench, cell, servers, labels):
    words = load_of(cell)
    if is_sliced(cell):
        load = beside.lab_load(options, words, ratios.connections(cell), size_of(cell))
        bench.rounds_in_slices(options.rounds, cell, labels, servers, load, options.ms)
        return
    for number, _, label in bench.rounds(options.rounds, [cell], labels):
        bench.ask(number, cell, label, servers, lambda port, pid: beside.loadgen(options, port, pid, words))
        # Not all servers sleep when their load is gone; and memory is measured in one that was never used.
        servers.stop(label)


def is_sliced(cell):
    """Whether all servers of a cell can be under load at once, each in its turn: not at a fixed rate, which does not wait, not
    without a load, and not with more bytes under way than the kernel grants TCP."""
    if cell.startswith("idle") or "rate=" in cell:
        return False
    return ratios.connections(cell) * size_of(cell) <= MAX_BYTES_UNDER_WAY


def size_of(cell):
    return int(re.search(r"\bs(\d+)\b", cell).group(1))


def load_of(cell):
    """What the load generator is told for a cell: `echo c50 s64 p1 rate=5` says all of it."""
    mode, *words = cell.split()
    names = {"c": "conns", "s": "size", "p": "depth"}
    return [f"--mode={mode}", *(f"--{word}" if "=" in word else f"--{names[word[0]]}={word[1:]}" for word in words)]


def ringport_commands(options):
    """Each engine and its twin, and what else of ours was asked for."""
    commands = {}
    for name, engine, given in ((URING, "io_uring", options.uring), (EPOLL, "epoll", options.epoll)):
        commands[name] = commands[name + TWIN] = given or serve(options.binary, engine)
        if options.before:
            commands[BEFORE[name]] = serve(options.before, engine)
    if options.tasks:
        commands[TASKS] = serve(options.binary, "io_uring") + " --api async"
    return commands


def serve(binary, engine):
    if not os.access(binary, os.X_OK):
        raise CannotMeasure(f"{binary} is missing: cargo build --release")
    # The load connects to four loopback addresses, so that ports suffice: the server listens on all of them.
    return f"{os.path.abspath(binary)} serve echo --listen 0.0.0.0:{{port}} --engine {engine} --workers 1 --log error"


# The report. Every cell that was tried appears in it, also those that fall short or have no result.


def report(runs):
    parts = [beside.heading(runs)]
    echo = [cell for cell in runs.cells if cell.startswith("echo") and "rate=" not in cell and "spin=" not in cell]
    if echo:
        parts += [medians(runs, echo), envelope(runs, echo), beside_itself(runs, echo)]
        parts += [runtimes(runs, echo, subject) for subject in (URING, TASKS)]
        parts.append(ping_pong(runs, echo))
    rates = [cell for cell in runs.cells if "rate=" in cell]
    parts.append(plain(runs, rates, "At a fixed rate", [*LATENCIES, ("CPU, µs a message", ratios.CPU)]))
    parts.append(no_worse(runs, rates, ENVELOPE, "the best hand-written server", LATENCIES))
    churns = [cell for cell in runs.cells if cell.startswith("churn")]
    parts.append(plain(runs, churns, "Connect, one echo, close", [("CPU, µs each", ratios.CPU), ("p50, µs", "p50_us")]))
    parts.append(no_worse(runs, churns, ["libuv"], "libuv", [("CPU, µs each", ratios.CPU)]))
    parts.append(plain(runs, [cell for cell in runs.cells if cell.startswith("idle")], "Idle connections", [
        ("bytes each, never used", "bytes_per_conn_fresh"), ("bytes each, after an echo", "bytes_per_conn_used")]))
    parts.append(failures(runs))
    return "\n\n".join(part for part in parts if part) + "\n"


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def short(cell):
    """`echo c50 s64 p16 rate=5` as `50 × 64, 16 deep, rate=5`."""
    words = dict((word[0], word[1:]) for word in cell.split()[1:] if word[0] in "csp" and word[1:].isdigit())
    if not {"c", "s", "p"} <= words.keys():
        return cell
    deep = [f"{words['p']} deep"] if words["p"] != "1" else []
    return ", ".join([f"{words['c']} × {words['s']}", *deep, *cell.split()[4:]])


def number(value):
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def verdict(answer):
    return {True: "yes", False: "**no**", None: "–"}[answer]


def labels(runs, cells):
    """The servers of these cells without the twins: ours, the hand-written ones, the runtimes, any others."""
    found = {label for cell in cells for label in runs.cells[cell]} - {URING + TWIN, EPOLL + TWIN}
    known = [URING, EPOLL, TASKS, *ENVELOPE, *RUNTIMES]
    return [label for label in known if label in found] + sorted(found.difference(known))


def medians(runs, cells):
    names = labels(runs, cells)
    rows = []
    for cell in cells:
        values = {name: runs.median(cell, name) for name in names}
        lowest = min((value for value in values.values() if value is not None), default=None)
        is_lowest = {name: lowest is not None and value == lowest for name, value in values.items()}
        rows.append([short(cell), *(f"**{number(values[name])}**" if is_lowest[name] else number(values[name]) for name in names)])
    title = "Server CPU time a message, µs, medians (connections × bytes)"
    return f"### {title}\n\n" + table(["cell", *names], rows)


def envelope(runs, cells):
    rows = []
    for cell in cells:
        row = [short(cell)]
        for name, columns in ((URING, ENVELOPE), (EPOLL, READINESS)):
            ratio = ratios.against_best(runs, cell, name, columns)
            noise = ratios.control(runs, cell, name, name + TWIN)
            within = ratios.within(ratio, ENVELOPE_BOUND, noise)
            row += [shown(ratio), f"{noise.upper:.3f}" if noise else "–", verdict(within)]
        rows.append(row)
    header = ["cell", "io_uring / best of five", "control", "within", "epoll / best of two", "control", "within"]
    return (
        f"### Against the best hand-written server of each cell\n\n{table(header, rows)}\n\n"
        "Ratio of CPU time a message: the median of paired rounds and its 95 % upper bound, against the best column, which is "
        "chosen in one half of the rounds and compared in the other. *control*: the same bound between two identical "
        f"servers. *within*: bound ≤ {ENVELOPE_BOUND} × control; no verdict on fewer than {ratios.FEWEST_ROUNDS} rounds. Best of five: {', '.join(ENVELOPE)}; of two: "
        f"{', '.join(READINESS)}."
    )


def shown(ratio):
    if ratio is None:
        return "–"
    note = "" if ratio.crossed else ", one round: not crossed"
    return f"{ratio.median:.3f} (≤ {ratio.upper:.3f}, {ratio.against}{note})"


def beside_itself(runs, cells):
    """Tasks beside handlers, and this build beside an older one."""
    pairs = [("tasks / handlers", TASKS, URING, TASKS_BOUND), *(
        (f"{name} / before", name, BEFORE[name], 1.0) for name in (URING, EPOLL))]
    pairs = [pair for pair in pairs if any(ratios.paired(runs, cell, pair[1], pair[2]) for cell in cells)]
    if not pairs:
        return ""
    rows = []
    together = [("all together", cells)] if len(cells) > 1 else []
    for name, group in [*((short(cell), [cell]) for cell in cells), *together]:
        row = [name]
        for _, mine, other, bound in pairs:
            ratio, engine = ratios.pooled(runs, group, mine, other), URING if mine == TASKS else mine
            noise = ratios.pooled_control(runs, group, engine, engine + TWIN)
            row += [f"{ratio.median:.3f} (≤ {ratio.upper:.3f})" if ratio else "–", verdict(ratios.within(ratio, bound, noise))]
        rows.append(row)
    header = ["cell", *(text for title, _, _, bound in pairs for text in (title, f"≤ {bound:g} × control"))]
    return "### Beside itself\n\n" + table(header, rows)


def runtime_verdicts(runs, cell, subject=URING):
    """Name of the comparison, ratio, bound and verdict for each runtime of the cell.

    Ahead of a runtime means that the whole bound lies below 1. With one connection both wait for the network most of the
    time, and it is enough to be no worse than the control can tell.
    """
    connections = ratios.connections(cell)
    noise = ratios.control(runs, cell, URING, URING + TWIN)
    found = []
    for name in RUNTIMES:
        ratio = ratios.paired(runs, cell, subject, name)
        if ratio is None:
            continue
        if connections == 1:
            found.append((name, ratio, "1 × control", ratios.within(ratio, 1.0, noise)))
            continue
        found.append((name, ratio, "< 1", ratio.upper < 1.0 if ratio.enough else None))
        if subject == URING and name == "tokio" and connections >= LEAD_CONNECTIONS:
            bound = 1 / LEAD_OVER_TOKIO
            label = f"{bound:.3f} × control"
            found.append((LEAD, ratio, label, ratios.within(ratio, bound, noise)))
    return found


def runtimes(runs, cells, subject):
    said = {cell: {name: (ratio, bound, answer) for name, ratio, bound, answer in runtime_verdicts(runs, cell, subject)} for cell in cells}
    names = [name for name in (LEAD, *RUNTIMES) if any(name in verdicts for verdicts in said.values())]
    if not names:
        return ""
    rows = []
    for cell in cells:
        found = [said[cell].get(name) for name in names]
        rows.append([short(cell), *(f"{one[0].median:.2f} (≤ {one[0].upper:.2f}) {verdict(one[2])}" if one else "" for one in found)])
    title = "Against the runtimes" if subject == URING else "Tasks against the runtimes"
    return (
        f"### {title}\n\n{table(['cell', *names], rows)}\n\n"
        f"{subject} divided by the runtime, with the bound. *yes*: the bound is below 1, so that it is ahead; with one connection, "
        f"no worse than the control can tell; by {LEAD_OVER_TOKIO}, the bound is ≤ {1 / LEAD_OVER_TOKIO:.3f} × control."
    )


def ping_pong(runs, cells):
    single = [cell for cell in cells if ratios.connections(cell) == 1]
    verdicts = no_worse(runs, single, RUNTIMES, "the best runtime", LATENCIES[:1])
    return "\n\n".join(part for part in (plain(runs, single, "One connection", LATENCIES), verdicts) if part)


def plain(runs, cells, title, columns):
    """Medians of some fields for each server, without a verdict."""
    rows = []
    for cell in cells:
        for name in labels(runs, [cell]):
            rows.append([short(cell), name, *(number(runs.median(cell, name, field)) for _, field in columns)])
    if not rows:
        return ""
    return f"### {title}\n\n" + table(["cell", "server", *(name for name, _ in columns)], rows)


def no_worse(runs, cells, columns, whom, fields):
    """Whether our servers are no worse in these fields than the best of the columns."""
    rows = []
    for cell in cells:
        for title, field in fields:
            for name in (URING, EPOLL):
                ratio = ratios.against_best(runs, cell, name, columns, field)
                noise = ratios.control(runs, cell, name, name + TWIN, field)
                if ratio and noise:
                    rows.append([short(cell), title.split(",")[0], name, shown(ratio), f"{noise.upper:.3f}", verdict(ratios.within(ratio, 1.0, noise))])
    return table(["cell", "what", "server", f"its own / that of {whom}", "control", "no worse"], rows) if rows else ""


def failures(runs):
    if not runs.failed:
        return ""
    lines = ["### Failed runs", ""]
    for (cell, label), errors in sorted(runs.failed.items()):
        times = "1 time" if len(errors) == 1 else f"{len(errors)} times"
        lines.append(f"- {label} in `{cell}` ({times}): {errors[0]}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
