"""Tests of what the scripts for files, streams and polling report, on made-up rounds, and of how they count processor time."""

import json
import os
import select
import signal
import subprocess
import sys
import time
import unittest

import beside
import measure
import measure_files
import measure_spin
import measure_streams
import ratios
from test_ratios import made_up
from ratios import Runs


LISTEN = "import socket, sys, time\ns = socket.create_server(('127.0.0.1', int(sys.argv[1])))\ntime.sleep(60)"
SECONDS_MAX = 20  # for what takes a fraction of one


def rounds_of(field, costs, cell, runs=None):
    """Made-up rounds whose cost stands in `field`."""
    found = made_up(costs, rounds=12, spread=0.002, cell=cell)
    runs = runs or Runs()
    for label, rounds in found.cells[cell].items():
        for number, record in rounds.items():
            value = next(record[name] for name in record if name.startswith("srv_cpu"))
            runs.add({"cell": cell, "label": label, "round": number[1], "cc": "reno", field: value})
    return runs


def line_of(text, *words):
    return next(line for line in text.splitlines() if all(word in line for word in words) and " (≤ " in line)


class Reports(unittest.TestCase):
    def test_files_are_judged_both_ways(self):
        ours = {measure.URING: 0.9, measure.URING + measure.TWIN: 0.9, measure.EPOLL: 1.2}
        runs = rounds_of(ratios.CPU_A_GB, {"nginx": 1.0, **ours}, "1 MiB")
        text = measure_files.report(runs)
        self.assertIn("| yes |", line_of(text, "1 MiB", measure.URING))
        self.assertIn("| **no** |", line_of(text, "1 MiB", measure.EPOLL))

    def test_streams_are_compared_with_the_best_peer(self):
        ours = {measure.URING: 1.02, measure.URING + measure.TWIN: 1.02, measure.EPOLL: 0.98}
        runs = rounds_of(measure_streams.FIELD, {"mio": 1.0, "tokio": 1.5, **ours}, "send 1 MiB")
        text = measure_streams.report(runs)
        self.assertIn("| **no** |", line_of(text, "send 1 MiB", measure.URING, "mio"))
        self.assertIn("| yes |", line_of(text, "send 1 MiB", measure.EPOLL, "mio"))

    def test_polling_is_compared_with_parking(self):
        label = measure.URING
        runs = rounds_of(measure_spin.P50, {label: 20.0, label + measure_spin.SPINS: 10.0}, "1 connection")
        self.assertIn("0.5", line_of(measure_spin.report(runs), "1 connection", label))


class Counting(unittest.TestCase):
    @unittest.skipUnless(os.path.exists("/proc/self/schedstat"), "skipped: the kernel does not tell processor time")
    def test_children_count_and_sleep_does_not(self):
        busy = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\nprint(flush=True)\ntime.sleep(30)"
        command = ["sh", "-c", '"$0" -c "$1"; :', sys.executable, busy]
        with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as child:
            try:
                child.stdout.readline()
                spent = beside.cpu_seconds(child.pid)
                self.assertGreater(spent, 0.15)
                self.assertEqual(len(beside.processes(child.pid)), 2)
                time.sleep(0.2)
                self.assertLess(beside.cpu_seconds(child.pid) - spent, 0.1)
            finally:
                os.killpg(child.pid, 9)

    def test_all_of_a_round_comes_before_the_next_and_the_order_changes(self):
        bench = beside.Bench("test", "reno")
        plan = list(bench.rounds(8, ["a", "b"], ["x", "y", "z"]))
        self.assertEqual([number for number, _, _ in plan], [number for number in range(8) for _ in range(6)])
        orders = {tuple(label for _, _, label in plan[at : at + 3]) for at in range(0, len(plan), 3)}
        self.assertGreater(len(orders), 2)
        self.assertTrue(all(sorted(order) == ["x", "y", "z"] for order in orders))

    @unittest.skipUnless((os.cpu_count() or 1) > 1 and os.path.exists("/proc/self/schedstat"), "skipped: needs two cores and Linux")
    def test_servers_take_turns(self):
        run = "first=$EPOCHREALTIME; trap 'echo $first $last; exit' INT; while :; do last=$EPOCHREALTIME; done"
        said = lambda text: dict(zip(("first", "last"), map(float, text.split()), strict=True))
        load = beside.Load(lambda *_: ["bash", "-c", run], said, 0.2, signal.SIGINT)
        commands = {label: [sys.executable, "-c", LISTEN, "{port}"] for label in ("a", "b", "c")}
        bench = beside.Bench("test", "reno")
        with beside.Servers(commands) as servers:
            bench.in_slices(0, "echo c1", list(commands), servers, load, 400)
            self.assertEqual(len(servers.started), 3, "servers stay for the next round")
        with open(bench.file, encoding="utf-8") as lines:
            found = {record["label"]: record for record in map(json.loads, lines)}
        os.remove(bench.file)
        self.assertEqual(sorted(found), ["a", "b", "c"])
        # However busy the machine is, none has to wait for the end of another.
        self.assertLess(max(record["first"] for record in found.values()), min(record["last"] for record in found.values()))

    @unittest.skipUnless((os.cpu_count() or 1) > 1 and os.path.exists("/proc/self/schedstat"), "skipped: needs two cores and Linux")
    def test_no_server_lasts_for_many_rounds(self):
        bench = beside.Bench("test", "reno")
        load = beside.Load(lambda port, *_: ["echo", str(port)], lambda text: {"port": int(text)}, 0.01)
        with beside.Servers({"a": [sys.executable, "-c", LISTEN, "{port}"]}) as servers:
            bench.rounds_in_slices(2 * beside.ROUNDS_A_START, "echo c1", ["a"], servers, load, 40)
        with open(bench.file, encoding="utf-8") as lines:
            ports = [record["port"] for record in map(json.loads, lines)]
        os.remove(bench.file)
        self.assertEqual(len(ports), 2 * beside.ROUNDS_A_START)
        self.assertEqual(len(set(ports)), 2)

    def test_a_load_that_fails_is_kept_as_a_failure(self):
        bench = beside.Bench("test", "reno")
        load = beside.Load(lambda *_: [sys.executable, "-c", "import sys; sys.exit('no such thing')"], json.loads, 0.2)
        with beside.Servers({"a": [sys.executable, "-c", LISTEN, "{port}"], "b": ["false"]}) as servers:
            bench.in_slices(0, "echo c1", ["a", "b"], servers, load, 40)
        with open(bench.file, encoding="utf-8") as lines:
            found = {record["label"]: record["error"] for record in map(json.loads, lines)}
        os.remove(bench.file)
        self.assertEqual(found, {"a": "no such thing", "b": "the server ended with 1"})


# Measures two servers, and says so as soon as each has a load. The loads and the servers do not end by themselves.
ENDLESS = f"""
import sys
import beside
listen, wait = [sys.executable, "-c", {LISTEN!r}], [sys.executable, "-c", "import time; time.sleep(60)"]
def command(*_):
    print("a load", flush=True)
    return wait
beside.leave_when_told_to_end()
load = beside.Load(command, str, 0.2)
with beside.Servers({{"a": [*listen, "{{port}}"], "b": [*listen, "{{port}}"]}}) as servers:
    beside.Bench("test", "reno").in_slices(0, "echo c1", ["a", "b"], servers, load, 60_000)
"""


@unittest.skipUnless((os.cpu_count() or 1) > 1 and os.path.exists("/proc/self/schedstat"), "skipped: needs two cores and Linux")
class Ending(unittest.TestCase):
    def test_nothing_stays_of_a_measurement_that_is_told_to_end(self):
        self.check(signal.SIGTERM)

    def test_nothing_stays_of_a_measurement_that_is_killed(self):
        self.check(signal.SIGKILL)

    def check(self, number):
        # Servers and loads inherit the input: whoever reads its other end is told when the last of them is gone.
        gone, held = os.pipe()
        command = [sys.executable, "-c", ENDLESS]
        scripts = os.path.dirname(os.path.abspath(__file__))
        with subprocess.Popen(command, stdin=held, stdout=subprocess.PIPE, cwd=scripts, start_new_session=True) as child:
            os.close(held)
            try:
                self.assertEqual([child.stdout.readline() for _ in range(2)], [b"a load\n"] * 2)
                self.assertEqual(select.select([gone], [], [], 0)[0], [])
                child.send_signal(number)
                self.assertEqual(select.select([gone], [], [], SECONDS_MAX)[0], [gone], "something runs on")
            finally:
                if not select.select([gone], [], [], 0)[0]:
                    os.killpg(child.pid, signal.SIGKILL)
                os.close(gone)


class Cells(unittest.TestCase):
    def test_a_name_says_all_of_the_load(self):
        self.assertEqual(measure.load_of("echo c50 s64 p16 rate=5"), ["--mode=echo", "--conns=50", "--size=64", "--depth=16", "--rate=5"])

    def test_a_fixed_rate_and_too_many_bytes_are_not_cut(self):
        cells = {"echo c50 s64 p1": True, "echo c50 s64 p1 rate=5": False, "churn c64 s64": True, "idle c8000 s64": False, "echo c8000 s16384 p1": False}
        self.assertEqual({cell: measure.is_sliced(cell) for cell in cells}, cells)


if __name__ == "__main__":
    unittest.main()
