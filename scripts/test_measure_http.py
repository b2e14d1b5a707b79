"""Tests of what the HTTP scripts make of other programs' output."""

import unittest

import measure_http
import profile_http
import ratios

WRK = """Running 2s test @ http://127.0.0.1:1/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     7.45ms    8.43ms  55.43ms   85.48%
    Req/Sec     8.47k     4.62k   17.91k    80.00%
  Latency Distribution
     50%  750.00us
     75%   11.63ms
     90%   18.70ms
     99%    1.50s
  8719 requests in 1.06s, 0.96MB read
Requests/sec:   8230.32
Transfer/sec:      0.90MB
"""

# 7 + 5 in hyper, 3 of the standard library in it, 4 in malloc, 2 elsewhere; 1000 and 50 are what was called.
CALLGRIND = """version: 1
positions: line
events: Ir
fl=(1) /root/.cargo/registry/src/index.crates.io-1/hyper-1.12.0/src/proto/h1/io.rs
fn=(1) hyper::proto::h1::io::poll_flush
10 7
+2 5
fi=(2) /rustc/5980/library/core/src/option.rs
3 3
fe=(1)
cfi=(3) ./malloc/./malloc/malloc.c
cfn=(2) malloc
calls=5 20
12 1000

fl=(3)
fn=(2)
20 4

fl=(4) main.c
fn=(3) main
calls=1 10
1 50
* 2
"""


class Wrk(unittest.TestCase):
    def test_figures(self):
        found = measure_http.figures(WRK)
        self.assertEqual(found, {"requests": 8719})

    def test_answers_that_are_missing_or_wrong_end_a_run(self):
        bad = ["", WRK.replace("8719", "0"), WRK + "  Non-2xx or 3xx responses: 5\n"]
        bad.append(WRK + "  Socket errors: connect 0, read 3, write 0, timeout 0\n")
        for text in bad:
            with self.assertRaises(ValueError):
                measure_http.figures(text)


class Verdicts(unittest.TestCase):
    def report(self, tokio):
        runs = ratios.Runs()
        costs = {measure_http.URING: 5.0, measure_http.URING + measure_http.TWIN: 5.0, measure_http.TOKIO: tokio}
        for number in range(6):
            for label, cost in costs.items():
                runs.add({"cell": measure_http.cell_name(512, 0), "label": label, "round": number, ratios.CPU: cost})
        return measure_http.report(runs)

    def test_fewer_microseconds_are_more_requests(self):
        self.assertIn("| http c512 | ringport-uring | 1.200 (≥ 1.200) | 1.000 | 1.1 | yes |", self.report(6.0))

    def test_a_lead_that_is_too_small_is_said(self):
        self.assertIn("| http c512 | ringport-uring | 1.080 (≥ 1.080) | 1.000 | 1.1 | **no** |", self.report(5.4))


class Profile(unittest.TestCase):
    def test_each_instruction_counts_once_and_where_it_was_written(self):
        found = profile_http.parts(CALLGRIND.splitlines(keepends=True))
        self.assertEqual(found, {"hyper": 15, "memory allocation": 4, "the rest": 2})

    def test_parts(self):
        cases = {
            ("/work/crates/ringport/src/aio/cell.rs", "f"): "ringport: tasks and streams",
            ("/work/crates/ringport/src/worker/mod.rs", "f"): "ringport: worker and sessions",
            ("/work/crates/ringport-engine/src/id.rs", "hyper::f"): "ringport: engine and buffers",
            ("/x/httparse-1.10.1/src/lib.rs", "f"): "http, httparse, bytes",
            ("/x/hyper-util-0.1.21/src/rt.rs", "f"): "tokio and mio",
            ("/rustc/59/library/core/src/mem/mod.rs", "ringport::aio::runtime::Runtime::poll"): "ringport: tasks and streams",
        }
        for (file, function), name in cases.items():
            self.assertEqual(profile_http.part(file, function), name)


if __name__ == "__main__":
    unittest.main()
