#!/usr/bin/env python3
"""Measures ringport against the hand-written servers and the runtimes of the lab, and says what may be claimed.

    scripts/measure.py run  [--suite matrix|runtimes|idle|open|churn|all] [--rounds 6] [--ms 1500] [--cells 'c50 s64,…']
    scripts/measure.py report [--markdown FILE]

`run` interleaves all servers in each round and appends a JSON line for each measurement to bench-out/SUITE.jsonl;
`report` reads what is there. The server has core 0, the load core 1, congestion control is reno, in a network
namespace of its own. Run it as root on an otherwise idle machine.

What is compared is the server's CPU time per message. A bound is met when the 95 % bootstrap upper bound of the
median of the paired ratios (same round, same cell) is within the bound times that of an identical control, a second
ringport that differs in nothing. The envelope of a cell is the best hand-written server, chosen in the even rounds and
compared in the odd ones and the other way round: the smallest of several noisy columns would flatter them.
"""
import argparse, glob, json, os, random, shutil, statistics, subprocess, sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OUT = os.path.join(ROOT, "bench-out")
HAND_WRITTEN = ["limit", "limit-inc", "limit-poll", "epoll-c", "mio"]
RUNTIMES = ["tokio", "monoio", "compio", "glommio", "tokio-uring", "smol", "asio", "libuv"]
OURS = {"ringport": "io_uring", "ringport control": "io_uring", "ringport epoll": "epoll", "ringport epoll control": "epoll"}
URING = ["ringport", "ringport control"]
CPU = "srv_cpu_s_per_mmsg"
# suite -> (suite of the lab, servers)
SUITES = {
    "matrix": ("key2", HAND_WRITTEN + list(OURS)),
    "runtimes": ("key2", RUNTIMES + URING),
    "idle": ("idle", ["limit", "epoll-c", "mio", "tokio", "libuv", "ringport", "ringport epoll"]),
    "open": ("open", HAND_WRITTEN + list(OURS)),
    "churn": ("extra", ["limit", "epoll-c", "mio", "libuv"] + URING + ["ringport epoll"]),
}
RESAMPLES, NOISE_PERCENT = 2000, 25


def prepare_lab(lab):
    """Builds a copy of the lab, which stands beside the checkout, and returns where it is."""
    if not os.path.exists(os.path.join(lab, "run.py")):
        shutil.copytree(os.path.join(ROOT, "..", "shared", "lab"), lab)
        subprocess.run(["chmod", "-R", "u+w", lab], check=True)
    if not os.path.exists(os.path.join(lab, "target/release/loadgen")):
        subprocess.run(["cargo", "build", "--release"], cwd=lab, check=True)
    if not os.path.exists(os.path.join(lab, "c/bin/epoll_et")):
        print("building the C and C++ peers (Debian: libuv1-dev libasio-dev g++)", file=sys.stderr)
        subprocess.run(["make", "-C", "c"], cwd=lab, check=False)
    return lab


def run(a):
    lab = prepare_lab(os.path.abspath(a.lab))
    program = os.path.abspath(a.program)
    if not os.path.exists(program):
        subprocess.run(["cargo", "build", "--release", "-p", "ringport-cli"], cwd=ROOT, check=True)
    os.makedirs(OUT, exist_ok=True)
    for suite in SUITES if a.suite == "all" else [a.suite]:
        lab_suite, servers = SUITES[suite]
        command = ["unshare", "-n", sys.executable, "run.py", lab_suite, "--cc", "reno", "--rounds", str(a.rounds),
                   "--ms", str(a.ms), "--out", os.path.join(OUT, suite + ".jsonl"), "--only", ",".join(servers)]
        cells = a.cells or ("churn" if suite == "churn" else "")
        command += ["--cells", cells] if cells else []
        for name, engine in OURS.items():
            # The load connects to several loopback addresses, so that this listens on all of them.
            serve = f"{program} serve {{service}} --listen 0.0.0.0:{{port}} --engine {engine} --workers 1"
            command += ["--server", f"{name}={serve}"]
        subprocess.run(command, cwd=lab, check=True)


def load(suite):
    """Runs of a suite by cell, server and round; and how many were dropped because other work disturbed them."""
    runs, dropped, start = {}, 0, 0
    for path in glob.glob(os.path.join(OUT, suite + ".jsonl")):
        last = 0
        for line in open(path):
            r = json.loads(line)
            # Rounds are numbered from 0 in every run of the lab; several runs follow each other in one file.
            if r["round"] < last:
                start += 1000
            last = r["round"]
            if "error" in r or r.get("other_pct", 0) > NOISE_PERCENT:
                dropped += 1
                continue
            runs.setdefault(r["cell"], {}).setdefault(r["label"], {})[start + r["round"]] = r
    return runs, dropped


def ratios(cell, ours, theirs, metric=CPU):
    """Ratios of the same rounds."""
    a, b = cell.get(ours, {}), cell.get(theirs, {})
    return [a[r][metric] / b[r][metric] for r in sorted(a.keys() & b.keys()) if b[r].get(metric)]


def best(cell, columns, rounds, metric=CPU):
    """The column with the smallest median over these rounds."""
    def middle(column):
        values = [cell[column][r][metric] for r in rounds if r in cell.get(column, {})]
        return statistics.median(values) if values else float("inf")
    return min(columns, key=middle)


def envelope_ratios(cell, ours, columns, metric=CPU):
    """Ratios to the best column, chosen in the other half of the rounds. Also the columns that were chosen."""
    rounds = sorted(cell.get(ours, {}))
    found, chosen = [], []
    for half in (0, 1):
        column = best(cell, columns, [r for i, r in enumerate(rounds) if i % 2 != half], metric)
        chosen.append(column)
        here = [r for i, r in enumerate(rounds) if i % 2 == half and r in cell.get(column, {})]
        found += [cell[ours][r][metric] / cell[column][r][metric] for r in here]
    return found, chosen


def upper(values):
    """Upper end of the 95 % bootstrap interval of the median."""
    if len(values) < 2:
        return float("nan")
    rng = random.Random(1)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return medians[int(RESAMPLES * 0.975)]


def verdict(values, control, bound):
    """Whether `values` are within `bound`, as far as the noise of the control lets us say."""
    if len(values) < 2 or len(control) < 2:
        return "too few rounds"
    # The control's ratio may lie on either side of 1; its distance is the noise.
    noise = max(upper(control), upper([1 / x for x in control]))
    return "yes" if upper(values) <= bound * noise else "no"


def middle(cell, column, metric=CPU):
    values = [r[metric] for r in cell.get(column, {}).values() if metric in r]
    return statistics.median(values) if values else float("nan")


def name_of(cell):
    """`echo c50 s64 p16` as a person writes it."""
    parts = dict((w[0], w[1:]) for w in cell.split()[1:] if w[1:].isdigit())
    deep = f", {parts['p']} deep" if parts.get("p", "1") != "1" else ""
    return f"{int(parts['c']):,} × {int(parts['s']):,}{deep}" if "c" in parts and "s" in parts else cell


def matrix_table(out):
    runs, dropped = load("matrix")
    if not runs:
        return
    rounds = max(len(r) for cell in runs.values() for r in cell.values())
    out.append(f"Server CPU, µs a message (medians of up to {rounds} interleaved rounds; {dropped} runs dropped as disturbed):\n")
    out.append("| connections × bytes | limit | limit-inc | limit-poll | epoll-c | mio | **io_uring** | **epoll** "
               "| io_uring / best (upper, control) | ≤ 1.05 | epoll / best of epoll-c, mio (upper, control) | ≤ 1.05 |")
    out.append("|---|" + "---|" * 11)
    for cell, columns in runs.items():
        row = [name_of(cell)] + [f"{middle(columns, c):.3g}" for c in HAND_WRITTEN + ["ringport", "ringport epoll"]]
        for ours, against in (("ringport", HAND_WRITTEN), ("ringport epoll", ["epoll-c", "mio"])):
            values, _ = envelope_ratios(columns, ours, against)
            control = ratios(columns, ours + " control", ours)
            if len(values) < 2:
                row += ["–", "too few rounds"]
                continue
            row.append(f"{statistics.median(values):.2f} ({upper(values):.2f}, {upper(control):.2f})")
            row.append(verdict(values, control, 1.05))
        out.append("| " + " | ".join(row) + " |")
    out.append("")


def runtimes_table(out):
    runs, dropped = load("runtimes")
    if not runs:
        return
    out.append(f"The runtimes: their server CPU a message as a multiple of ringport's (io_uring); {dropped} runs dropped:\n")
    out.append("| connections × bytes | ringport µs | " + " | ".join(RUNTIMES) + " | ahead of all |")
    out.append("|---|---|" + "---|" * (len(RUNTIMES) + 1))
    for cell, columns in runs.items():
        row, behind = [name_of(cell), f"{middle(columns, 'ringport'):.3g}"], []
        control = ratios(columns, "ringport control", "ringport")
        alone = " c1 " in cell
        for runtime in RUNTIMES:
            values = ratios(columns, "ringport", runtime)
            row.append(f"{1 / statistics.median(values):.2f}" if values else "–")
            if values and (verdict(values, control, 1.0) != "yes" if alone else upper(values) >= 1):
                behind.append(runtime)
        row.append("yes" if not behind else "not shown: " + ", ".join(behind))
        out.append("| " + " | ".join(row) + " |")
    out.append("")


def simple_table(out, suite, title, metrics, columns):
    runs, _ = load(suite)
    for cell, found in runs.items():
        out.append(f"{title} ({cell}):\n")
        out.append("| server | " + " | ".join(label for _, label in metrics) + " |")
        out.append("|---|" + "---|" * len(metrics))
        for column in columns:
            if column in found:
                out.append(f"| {column} | " + " | ".join(f"{middle(found, column, m):,.4g}" for m, _ in metrics) + " |")
        out.append("")


def report(a):
    out = []
    matrix_table(out)
    runtimes_table(out)
    latency = [("p50_us", "p50 µs"), ("p99_us", "p99 µs"), (CPU, "CPU µs a message")]
    simple_table(out, "open", "Open loop", latency, HAND_WRITTEN + ["ringport", "ringport epoll"])
    simple_table(out, "churn", "Connect, one echo, close", [("msgs_s", "connections/s"), (CPU, "CPU µs each")], SUITES["churn"][1])
    simple_table(out, "idle", "Idle connections", [("bytes_per_conn_fresh", "bytes each, new"), ("bytes_per_conn_used", "after one echo")], SUITES["idle"][1])
    text = "\n".join(out)
    print(text)
    if a.markdown:
        with open(a.markdown, "w") as f:
            f.write(text)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(dest="command", required=True)
    r = sub.add_parser("run", help="measure")
    r.add_argument("--suite", choices=list(SUITES) + ["all"], default="matrix")
    r.add_argument("--rounds", type=int, default=6)
    r.add_argument("--ms", type=int, default=1500)
    r.add_argument("--cells", default="", help="parts of cell names, separated by commas; all if empty")
    r.add_argument("--lab", default="/tmp/lab", help="where the lab is built, or is to be")
    r.add_argument("--program", default=os.path.join(ROOT, "target/release/ringport"))
    s = sub.add_parser("report", help="evaluate what was measured")
    s.add_argument("--markdown", default="", metavar="FILE", help="also write the tables to FILE")
    a = p.parse_args()
    run(a) if a.command == "run" else report(a)


if __name__ == "__main__":
    main()
