#!/usr/bin/env python3
"""Measures how many datagrams an echo server answers in a second of processor time, beside a plain loop and tokio.

    cargo build --release && scripts/measure_udp.py
    scripts/measure_udp.py --rounds 1 --seconds 0.3        # only to see that it works

Two workloads of 64 bytes: *bursts* (few peers with many datagrams under way each) and *singles* (many peers with one
each). The load is `ringport bench --udp`. Servers take turns in each round; the median of the rounds counts. A server's
processor time is read from /proc before and after (user and system, in ticks of 10 ms), so runs should last a second or
more. The load and the servers share the machine, which should be quiet otherwise. Linux only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PEERS = os.path.join(ROOT, "benches", "peers")
# Workload: sockets, and datagrams under way on each.
WORKLOADS = {"bursts": (8, 32), "singles": (200, 1)}
# Workload: how many times as many as each peer ringport should answer.
WANTED = {"bursts": 1.5, "singles": 1.0}


class CannotMeasure(Exception):
    pass


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one run")
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
    parser.add_argument("--binary", default=os.path.join(target, "release", "ringport"))
    parser.add_argument("--json", default="", metavar="FILE")
    options = parser.parse_args()
    try:
        results = measure(options)
    except (CannotMeasure, OSError, ValueError, subprocess.SubprocessError) as error:
        print(f"measure_udp: {error}", file=sys.stderr)
        return 1
    print(table(results))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)
    return 0


def commands(options):
    """The servers: name and command."""
    if not os.access(options.binary, os.X_OK):
        raise CannotMeasure(f"{options.binary} is missing: cargo build --release")
    target = os.path.join(PEERS, "target")
    build = ["cargo", "build", "--release", "--quiet", "--target-dir", target]
    if subprocess.run(build, cwd=PEERS).returncode != 0:
        raise CannotMeasure("the peers cannot be built")
    serve = [options.binary, "serve", "echo", "--udp", "127.0.0.1:0", "--log", "off", "--engine"]
    return {
        "io_uring": [*serve, "io_uring"],
        "epoll": [*serve, "epoll"],
        "loop": [os.path.join(target, "release", "udp-loop")],
        "tokio": [os.path.join(target, "release", "udp-tokio")],
    }


def measure(options):
    """For each workload and server: datagrams per second of the server's processor time, of each round."""
    servers = commands(options)
    results = {workload: {name: [] for name in servers} for workload in WORKLOADS}
    for number in range(options.rounds):
        names = list(servers)
        names = names[number % len(names):] + names[:number % len(names)]
        for workload, shape in WORKLOADS.items():
            for name in names:
                results[workload][name].append(run_one(options, servers[name], shape))
    return results


def run_one(options, command, shape):
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline().split()
        if line[:2] != ["listening", "udp"]:
            raise CannotMeasure(f"{command[0]} does not serve: {line}")
        before = processor_time(server.pid)
        load = [options.binary, "bench", line[2], "--udp", "--json", "-", "--size", "64", "--log", "off"]
        load += ["--connections", str(shape[0]), "--pipeline", str(shape[1]), "--duration", f"{options.seconds}s"]
        done = subprocess.run(load, stdout=subprocess.PIPE, timeout=options.seconds + 30)
        figures = json.loads(done.stdout)["results"][0]
        figures["server_cpu_seconds"] = processor_time(server.pid) - before
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    if figures["server_cpu_seconds"] <= 0 or figures["returned"] == 0:
        raise CannotMeasure(f"{command[0]}: the run was too short: {figures}")
    figures["per_cpu_second"] = figures["returned"] / figures["server_cpu_seconds"]
    return figures


def processor_time(pid):
    """Seconds of user and system time so far, see proc_pid_stat(5)."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def table(results):
    lines = ["| workload | server | datagrams per CPU second | a second | lost of sent | ringport beside it |",
             "|---|---|---|---|---|---|"]
    for workload, servers in results.items():
        rate = {name: statistics.median(run["per_cpu_second"] for run in runs) for name, runs in servers.items()}
        for name, runs in servers.items():
            throughput = statistics.median(run["returned_per_second"] for run in runs)
            lost, sent = sum(run["lost"] for run in runs), sum(run["sent"] for run in runs)
            beside = ""
            if name in ("loop", "tokio"):
                ratios = [(engine, rate[engine] / rate[name]) for engine in ("io_uring", "epoll")]
                beside = ", ".join(f"{engine} {ratio:.2f}" for engine, ratio in ratios)
                beside += f" (wanted {WANTED[workload]})"
            lines.append(f"| {workload} | {name} | {rate[name]:,.0f} | {throughput:,.0f} | {lost} of {sent} | {beside} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
