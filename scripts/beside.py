"""One server on core 0 beside one load on core 1, in a network namespace of its own: what the measuring scripts have in
common. What a run says is written as one line of JSON, which ratios.py reads."""

import datetime
import json
import os
import platform
import random
import shlex
import signal
import subprocess
import sys
import time

import ratios

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MARK = "RINGPORT_BESIDE"  # set in the process that runs inside the namespace
START_SECONDS = 5.0
FIRST_PORT = 7000
LOAD_SECONDS_MAX = 30
WARM_MS = 200


class CannotMeasure(Exception):
    pass


def enter_namespace(congestion):
    """Starts this script again in a network namespace of its own, with that congestion control (empty: the machine's)."""
    if MARK not in os.environ:
        if os.geteuid() != 0:
            raise CannotMeasure("a network namespace needs root")
        os.environ[MARK] = "1"
        os.execvp("unshare", ["unshare", "-n", sys.executable, *sys.argv])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    if congestion:
        subprocess.run(["sysctl", "-qw", f"net.ipv4.tcp_congestion_control={congestion}"], check=True)
    with open("/proc/sys/net/ipv4/tcp_congestion_control", encoding="ascii") as file:
        return file.read().strip()


def on_core(core, command):
    return ["nice", "-n", "-10", "taskset", "-c", str(core), *command]


def processes(pid):
    """A process and those that it has started."""
    found = [pid]
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            for child in file.read().split():
                found += processes(int(child))
    except OSError:
        pass
    return found


def cpu_seconds(pid):
    """Processor time of a process with all its threads and children, to the nanosecond (proc(5), schedstat)."""
    total = 0
    for process in processes(pid):
        try:
            for task in os.listdir(f"/proc/{process}/task"):
                with open(f"/proc/{process}/task/{task}/schedstat", encoding="ascii") as file:
                    total += int(file.read().split()[0])
        except OSError:
            continue
    return total / 1e9


def busy_seconds():
    """Processor time of the whole machine but for idling."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def wait_for_port(port, server):
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with open("/proc/net/tcp", encoding="ascii") as file:
            if any(f":{port:04X} " in line and " 0A " in line for line in file):
                return
        if server.poll() is not None:
            raise CannotMeasure(f"the server ended with {server.returncode}")
        time.sleep(0.01)
    raise CannotMeasure(f"nothing listens on port {port}")


class Bench:
    """Runs, each with a server and a port of its own, and the file that they are written to."""

    def __init__(self, name, congestion):
        folder = os.path.join(ROOT, "bench-out")
        os.makedirs(folder, exist_ok=True)
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        self.file = os.path.join(folder, f"{name}-{stamp}.jsonl")
        self.congestion = congestion
        self.count = 0

    def rounds(self, number, cells, labels):
        """Round, cell and label of every run: all of a round before the next, the labels in another order each time."""
        for round_number in range(number):
            print(f"round {round_number + 1} of {number}", file=sys.stderr, flush=True)
            for cell in cells:
                order = list(labels)
                random.Random(f"{ratios.SEED} {round_number} {cell}").shuffle(order)
                for label in order:
                    yield round_number, cell, label

    def run(self, round_number, cell, label, command, load):
        """Starts a server, lets `load(port, pid)` work on it, and keeps what that returns. A failure is kept, too."""
        self.count += 1
        port = FIRST_PORT + self.count % 900  # what is left of the last server cannot refuse the bind
        record = {"cell": cell, "label": label, "round": round_number, "cc": self.congestion}
        words = command if isinstance(command, list) else shlex.split(command)
        words = [word.replace("{port}", str(port)) for word in words]
        server = subprocess.Popen(on_core(0, words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for_port(port, server)
            before, own, begin = busy_seconds(), own_seconds(), time.monotonic()
            served = cpu_seconds(server.pid)
            record |= load(port, server.pid)
            elapsed, served = time.monotonic() - begin, cpu_seconds(server.pid) - served
            # With the loads' own time, which is only known once they have ended.
            others = busy_seconds() - before - served - (own_seconds() - own)
            record["other_pct"] = round(100 * others / elapsed, 1)
            record["whole_cpu_s"] = served
        except (CannotMeasure, OSError, ValueError, subprocess.SubprocessError) as error:
            record["error"] = str(error)[:200]
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(timeout=2)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def own_seconds():
    """Processor time of this process and of all its children that have ended: the loads."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def output_of(command, seconds):
    """What a load prints. It runs on core 1 and is ended after that time."""
    done = subprocess.run(on_core(1, command), capture_output=True, text=True, timeout=seconds)
    if done.returncode != 0:
        raise CannotMeasure(f"{command[0]} failed: {done.stderr.strip()[:150] or done.returncode}")
    return done.stdout


def heading(runs):
    """When, where and how often was measured, and what was dropped."""
    rounds = {number for cell in runs.cells.values() for label in cell.values() for number in label}
    return (
        f"{datetime.date.today()}, Linux {platform.release()}, {os.cpu_count()} cores, {', '.join(sorted(runs.congestion))}, "
        f"{len(rounds)} rounds, {runs.total} runs; {runs.noisy} dropped because other work used more than "
        f"{ratios.NOISE_PCT:.0f} % of a core, {sum(map(len, runs.failed.values()))} failed."
    )


def report_on(name, options, measure_all, report):
    """The whole of a script: measures (or not), reads the results, reports. Returns the exit code.

    `measure_all` returns the names of the files that it has written.
    """
    try:
        runs = ratios.Runs.read(options.analyse or measure_all(options))
        if not runs.usable():
            raise CannotMeasure(f"none of {runs.total} runs can be used ({runs.noisy} noisy, {len(runs.failed)} failed)")
    except (CannotMeasure, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    write(report(runs), options.markdown)
    return 0


def common_options(parser):
    add = parser.add_argument
    add("--rounds", type=int, default=6, help=f"interleaved rounds; at least {ratios.FEWEST_ROUNDS} for a verdict (default: 6)")
    add("--cc", default="reno", help="TCP congestion control; the machine's with an empty value (default: reno)")
    add("--binary", default=os.path.join(ROOT, "target", "release", "ringport"), help="the ringport to be measured")
    add("--markdown", default="", metavar="FILE", help="write the report there, too")
    add("--analyse", nargs="+", default=[], metavar="FILE", help="measure nothing, report on these results")


def lab_options(parser):
    parser.add_argument("--lab", default="/tmp/lab", help="where the lab is built, or will be (default: /tmp/lab)")
    parser.add_argument("--lab-source", default=os.path.join(ROOT, "..", "shared", "lab"))
    parser.add_argument("--ms", type=int, default=500, help="length of one run (default: 500)")


def loadgen(options, port, pid, words):
    """One run of the lab's load generator, which measures the server itself."""
    command = [os.path.join(options.lab, "target", "release", "loadgen"), f"--port={port}", f"--pid={pid}"]
    lines = output_of([*command, f"--ms={options.ms}", f"--warm={WARM_MS}", *words], LOAD_SECONDS_MAX).strip().splitlines()
    if not lines:
        raise CannotMeasure("the load generator says nothing")
    return {name: value for name, value in json.loads(lines[-1]).items() if name not in ("label", "cell")}


def write(text, markdown):
    print(text)
    if markdown:
        os.makedirs(os.path.dirname(os.path.abspath(markdown)), exist_ok=True)
        with open(markdown, "w", encoding="utf-8") as file:
            file.write(text)
