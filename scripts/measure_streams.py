#!/usr/bin/env python3
"""Measures one-way streams: what a byte costs ringport and the lab's other servers, to receive and to send.

    scripts/measure_streams.py --rounds 6 --markdown bench-out/streams.md
    scripts/measure_streams.py --zero-copy --cells send --servers ringport-uring,ringport-uring-2
    scripts/measure_streams.py --analyse bench-out/streams-*.jsonl

One connection, all in one direction, in writes of 64 KiB and of 1 MiB: `ringport serve discard` and `serve generate --piece`
beside the hand-written servers and tokio. The servers run on core 0, the loads on core 1, in a network namespace of their
own, in turns of 40 ms. Streams depend on the congestion control before anything else:
reno, unless --cc says otherwise. --zero-copy asks whether io_uring's sends without a copy (`serve --zero-copy`) are cheaper
on this machine, by a second `generate` that makes all of its sends so. Needs root, the lab (built when it is missing) and a quiet machine. The exit code is 0
whatever the verdicts are, and 1 only if nothing could be measured. Six rounds take about 3 minutes.
"""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import beside  # noqa: E402 (beside this file, wherever that is called from)
import measure  # noqa: E402
import ratios  # noqa: E402

# Of one write. The load says the time of a gigabyte, too, but rounded to a hundredth of it.
FIELD = ratios.CPU
PEERS = ["epoll-c", "mio", "limit", "tokio"]
# Cell: what the load does, what ringport does, bytes of a write.
CELLS = {
    "receive 64 KiB": ("sink", "discard", 65536),
    "receive 1 MiB": ("sink", "discard", 1048576),
    "send 64 KiB": ("source", "generate", 65536),
    "send 1 MiB": ("source", "generate", 1048576),
}
ZERO_COPY = measure.URING + "-zc"
OURS = {measure.URING: "io_uring", measure.URING + measure.TWIN: "io_uring", measure.EPOLL: "epoll"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside.common_options(parser)
    beside.lab_options(parser)
    parser.add_argument("--cells", default="", help="only cells whose name contains one of these, as in 'send,receive 1'")
    parser.add_argument("--zero-copy", action="store_true", help="also send without a copy, with io_uring")
    parser.add_argument("--servers", default="", help=f"only these of {', '.join([*OURS, *PEERS])}")
    return beside.report_on("measure_streams", parser.parse_args(), run_all, report)


def run_all(options):
    """Measures, and returns the name of the file with the results."""
    if not os.access(options.binary, os.X_OK):
        raise beside.CannotMeasure(f"{options.binary} is missing: cargo build --release")
    beside.prepare_lab(options.lab, options.lab_source)
    congestion = beside.enter_namespace(options.cc)
    wanted = options.servers.split(",") if options.servers else [*OURS, *PEERS]
    cells = [cell for cell in CELLS if any(word in cell for word in options.cells.split(","))]
    bench = beside.Bench("streams", congestion)
    for cell in cells:
        mode, service, size = CELLS[cell]
        labels = [*wanted, ZERO_COPY] if options.zero_copy and service == "generate" else wanted
        load = beside.lab_load(options, [f"--mode={mode}", "--conns=1", f"--size={size}"], 1, size)
        with beside.Servers({label: command(options, cell, label) for label in labels}) as servers:
            bench.rounds_in_slices(options.rounds, cell, labels, servers, load, options.ms)
    return [bench.file]


def command(options, cell, label):
    mode, service, size = CELLS[cell]
    if label in OURS or label == ZERO_COPY:
        engine, more = OURS.get(label, "io_uring"), ["--zero-copy", "1"] if label == ZERO_COPY else []
        words = [os.path.abspath(options.binary), "serve", service, "--listen", "0.0.0.0:{port}", "--engine", engine]
        return [*words, "--piece", str(size), "--log", "error", *more]
    return [*beside.lab_servers(options.lab)[label], "--port={port}", f"--mode={mode}", f"--write={size}"]


def report(runs):
    cells = [cell for cell in CELLS if cell in runs.cells]
    labels = [label for label in [measure.URING, measure.EPOLL, *PEERS] if any(label in runs.cells[cell] for cell in cells)]
    parts = [beside.heading(runs)]
    rows = [[cell, *(seconds_a_gigabyte(runs, cell, label) for label in labels)] for cell in cells]
    parts.append("### Server CPU time, seconds a gigabyte, medians\n\n" + measure.table(["stream", *labels], rows))
    rows = []
    for cell in cells:
        noise = ratios.control(runs, cell, measure.URING, measure.URING + measure.TWIN, FIELD)
        for label in (measure.URING, measure.EPOLL):
            ratio = ratios.against_best(runs, cell, label, PEERS, FIELD)
            row = [cell, label, measure.shown(ratio), f"{noise.upper:.3f}" if noise else "–"]
            rows.append([*row, measure.verdict(ratios.within(ratio, 1.0, noise))])
    header = ["stream", "server", "its CPU time a byte / the best peer's", "control", "at least as good"]
    parts.append(
        f"### Against the best peer\n\n{measure.table(header, rows)}\n\nMedian of paired rounds and its 95 % upper bound, against the best "
        "peer, which is chosen in one half of the rounds and compared in the other. *control*: the same bound between two "
        f"identical servers. *at least as good*: bound ≤ control; no verdict on fewer than {ratios.FEWEST_ROUNDS} rounds."
    )
    parts.append(without_a_copy(runs, cells))
    parts.append(measure.failures(runs))
    return "\n\n".join(part for part in parts if part) + "\n"


def seconds_a_gigabyte(runs, cell, label):
    microseconds, (_, _, size) = runs.median(cell, label, FIELD), CELLS[cell]
    return f"{microseconds / 1e6 / size * 1e9:.3f}" if microseconds else "–"


def without_a_copy(runs, cells):
    """What sends without a copy cost beside the others, where that was measured."""
    rows = []
    for cell in cells:
        ratio = ratios.paired(runs, cell, ZERO_COPY, measure.URING, FIELD)
        if ratio:
            noise = ratios.control(runs, cell, measure.URING, measure.URING + measure.TWIN, FIELD)
            rows.append([cell, measure.shown(ratio), f"{noise.upper:.3f}" if noise else "–"])
    if not rows:
        return ""
    header = ["stream", "CPU time a byte without a copy / with one", "control"]
    return f"### io_uring: sends without a copy\n\n{measure.table(header, rows)}"


if __name__ == "__main__":
    sys.exit(main())
