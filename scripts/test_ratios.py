"""Tests of the statistics on made-up rounds, where the truth is known."""

import json
import os
import random
import tempfile
import unittest

import measure
import ratios
from ratios import CPU, Runs

CELL = "echo c1000 s64 p1"


def made_up(costs, rounds=12, spread=0.02, drift=0.3, seed=1, cell=CELL, runs=None):
    """Rounds in which each label costs what `costs` says, with noise of its own and a drift common to the round."""
    source = random.Random(seed)
    runs = runs or Runs()
    for number in range(rounds):
        common = 1 + source.uniform(0, drift)
        for label, cost in costs.items():
            value = cost * common * (1 + source.gauss(0, spread))
            runs.add({"cell": cell, "label": label, "round": number, "cc": "reno", CPU: value, "other_pct": 3})
    return runs


class Reading(unittest.TestCase):
    def test_noisy_and_failed_runs_are_dropped_and_counted(self):
        runs = Runs()
        runs.add({"cell": CELL, "label": "a", "round": 0, CPU: 3.0, "other_pct": 25.0})
        runs.add({"cell": CELL, "label": "a", "round": 1, CPU: 9.0, "other_pct": 25.1})
        runs.add({"cell": CELL, "label": "a", "round": 2, "error": "timeout"})
        self.assertEqual(runs.values(CELL, "a"), {(0, 0): 3.0})
        self.assertEqual((runs.total, runs.noisy, runs.usable()), (3, 1, 1))
        self.assertEqual(runs.failed, {(CELL, "a"): ["timeout"]})

    def test_rounds_of_two_files_stay_apart(self):
        with tempfile.TemporaryDirectory() as folder:
            names = [os.path.join(folder, name) for name in ("a", "b")]
            for name, value in zip(names, (1.0, 2.0)):
                with open(name, "w", encoding="utf-8") as file:
                    file.write(json.dumps({"cell": CELL, "label": "a", "round": 0, CPU: value}) + "\n\n")
            self.assertEqual(sorted(Runs.read(names).values(CELL, "a").values()), [1.0, 2.0])

    def test_connections_of_a_cell(self):
        self.assertEqual([ratios.connections(cell) for cell in (CELL, "echo c1 s64 p1", "churn")], [1000, 1, 0])


class Pairing(unittest.TestCase):
    def test_drift_between_rounds_cancels(self):
        runs = made_up({"a": 3.0, "b": 4.0}, spread=0, drift=2.0)
        ratio = ratios.paired(runs, CELL, "a", "b")
        self.assertAlmostEqual(ratio.median, 0.75)
        self.assertAlmostEqual(ratio.upper, 0.75)

    def test_only_common_rounds_count(self):
        runs = Runs()
        for label, number in (("a", 0), ("a", 1), ("b", 1), ("b", 2)):
            runs.add({"cell": CELL, "label": label, "round": number, CPU: 1.0 + number})
        self.assertEqual(ratios.paired(runs, CELL, "a", "b").ratios, [1.0])
        self.assertIsNone(ratios.paired(runs, CELL, "a", "c"))

    def test_the_bound_is_repeatable_above_the_median_and_covers_the_truth(self):
        covered = 0
        for seed in range(60):
            runs = made_up({"a": 1.0, "b": 1.0}, spread=0.05, seed=seed)
            ratio = ratios.paired(runs, CELL, "a", "b")
            self.assertGreaterEqual(ratio.upper, ratio.median)
            self.assertEqual(ratio.upper, ratios.upper_bound(ratio.ratios))
            covered += ratio.upper >= 1.0
        self.assertGreaterEqual(covered, 50, "a 95 % bound that covers much less is none")

    def test_the_control_does_not_depend_on_the_order(self):
        runs = made_up({"a": 1.0, "b": 1.1})
        self.assertEqual(ratios.control(runs, CELL, "a", "b").upper, ratios.control(runs, CELL, "b", "a").upper)
        self.assertGreater(ratios.control(runs, CELL, "a", "b").upper, 1.05)
        self.assertIsNone(ratios.control(runs, CELL, "a", "c"))


class Envelope(unittest.TestCase):
    def test_the_best_column_is_found(self):
        runs = made_up({"mine": 3.15, "slow": 4.0, "fast": 3.0, "other": 3.5})
        ratio = ratios.against_best(runs, CELL, "mine", ["slow", "fast", "other", "missing"])
        self.assertEqual((ratio.against, ratio.crossed), ("fast", True))
        self.assertAlmostEqual(ratio.median, 1.05, delta=0.02)
        self.assertEqual(len(ratio.ratios), 12)

    def test_many_equal_columns_do_not_make_a_better_one(self):
        columns = [f"column {number}" for number in range(20)]
        crossed, naive = [], []
        for seed in range(40):
            runs = made_up({"mine": 1.0} | dict.fromkeys(columns, 1.0), rounds=6, spread=0.05, drift=0, seed=seed)
            crossed.append(ratios.against_best(runs, CELL, "mine", columns).median)
            lowest = ratios.best(runs, CELL, columns, {(0, number) for number in range(6)})
            naive.append(ratios.paired(runs, CELL, "mine", lowest).median)
        self.assertAlmostEqual(sum(crossed) / 40, 1.0, delta=0.015)
        self.assertGreater(sum(naive) / 40, 1.03, "without crossing, the minimum flatters the columns")

    def test_one_round_cannot_be_crossed_and_says_so(self):
        ratio = ratios.against_best(made_up({"mine": 2.0, "a": 1.0}, rounds=1, spread=0), CELL, "mine", ["a"])
        self.assertFalse(ratio.crossed)
        self.assertAlmostEqual(ratio.median, 2.0)
        self.assertIsNone(ratios.against_best(Runs(), CELL, "mine", ["a"]))


class Verdicts(unittest.TestCase):
    def runs(self, factor):
        costs = {"ringport-uring": factor, "ringport-uring-2": factor, "limit": 1.0, "mio": 1.1}
        return made_up(costs, rounds=20, spread=0.005)

    def verdict(self, factor):
        runs = self.runs(factor)
        ratio = ratios.against_best(runs, CELL, "ringport-uring", ["limit", "mio"])
        return ratios.within(ratio, 1.05, ratios.control(runs, CELL, "ringport-uring", "ringport-uring-2"))

    def test_both_ways(self):
        self.assertIs(self.verdict(1.03), True)
        self.assertIs(self.verdict(1.10), False)
        self.assertIsNone(ratios.within(None, 1.05, None))

    def test_too_few_rounds_give_no_verdict(self):
        for rounds, answer in ((4, None), (5, True)):
            runs = made_up({"a": 1.0, "a-2": 1.0, "b": 2.0}, rounds=rounds)
            ratio = ratios.paired(runs, CELL, "a", "b")
            self.assertIs(ratios.within(ratio, 1.0, ratios.control(runs, CELL, "a", "a-2")), answer)

    def test_the_report_has_every_cell_and_both_verdicts(self):
        runs = self.runs(1.02)
        costs = {"ringport-uring": 2.0, "ringport-uring-2": 2.0, "limit": 1.0, "tokio": 1.5, "compio": 3.0}
        made_up(costs, cell="echo c8000 s64 p1", runs=runs, spread=0.005)
        runs.add({"cell": "echo c1 s64 p1", "label": "tokio", "round": 0, "error": "refused"})
        text = measure.report(runs)
        judged = text[text.index("### Against the best"):].splitlines()
        for cell, verdict in (("1000 × 64", "yes"), ("8000 × 64", "**no**"), ("1 × 64", "–")):
            line = next(line for line in judged if line.startswith(f"| {cell} |"))
            self.assertIn(f"| {verdict} |", line)
        self.assertIn("tokio in `echo c1 s64 p1` (1 time): refused", text)

    def test_the_other_tables_have_their_fields(self):
        runs = Runs()
        for cell, fields in (
            ("echo c50 s64 p1 rate=50000", {"p50_us": 20.5, "p99_us": 41, CPU: 4.2}),
            ("churn c64 s64", {"p50_us": 900, CPU: 15.2}),
            ("idle c8000", {"bytes_per_conn_fresh": 47, "bytes_per_conn_used": 73}),
        ):
            runs.add({"cell": cell, "label": "ringport-uring", "round": 0, **fields})
        text = measure.report(runs)
        self.assertIn("| 50 × 64, rate=50000 | ringport-uring | 20.5 | 41 | 4.2 |", text)
        self.assertIn("| churn c64 s64 | ringport-uring | 15.2 | 900 |", text)
        self.assertIn("| idle c8000 | ringport-uring | 47 | 73 |", text)

    def test_latencies_and_short_connections_are_judged_beside_the_best(self):
        ours = {"ringport-uring": 1.0, "ringport-uring-2": 1.0, "ringport-epoll": 1.3, "ringport-epoll-2": 1.3}
        text = measure.report(made_up(ours | {"libuv": 1.1, "tokio": 0.5}, cell="churn c64 s64", spread=0.002))
        self.assertRegex(text, r"churn c64 s64 \| CPU \| ringport-uring \| 0.9\d+ \(≤ 0.9\d+, libuv\) \| 1.0\d+ \| yes")
        self.assertRegex(text, r"churn c64 s64 \| CPU \| ringport-epoll \| .* \| \*\*no\*\*")
        runs = Runs()
        for number in range(8):
            for label, p50 in {"ringport-uring": 30, "ringport-uring-2": 31, "tokio": 33, "libuv": 34, "limit-poll": 20}.items():
                runs.add({"cell": "echo c1 s64 p1", "label": label, "round": number, CPU: 1.0, "p50_us": p50})
        self.assertRegex(measure.report(runs), r"1 × 64 \| p50 \| ringport-uring \| 0.909 \(≤ 0.909, tokio\) \| .* \| yes")

    def test_runtimes_are_judged_by_their_bounds(self):
        costs = {"ringport-uring": 1.0, "ringport-uring-2": 1.0, "tokio": 1.1, "monoio": 1.5, "smol": 0.9}
        said = {name: verdict for name, _, _, verdict in measure.runtime_verdicts(made_up(costs, spread=0.005), CELL)}
        self.assertEqual(said, {"tokio": True, "tokio by 1.2": False, "monoio": True, "smol": False})
        alone = made_up(costs | {"tokio": 1.01}, spread=0.005, cell="echo c1 s64 p1")
        said = {name: verdict for name, _, _, verdict in measure.runtime_verdicts(alone, "echo c1 s64 p1")}
        self.assertEqual(said, {"tokio": True, "monoio": True, "smol": False})

    def test_tasks_and_older_builds_are_beside_what_they_are_compared_with(self):
        costs = {"ringport-uring": 1.0, "ringport-uring-2": 1.0, "ringport-tasks": 1.02, "before-uring": 0.9, "tokio": 1.2}
        text = measure.report(made_up(costs, spread=0.002))
        row = next(line for line in text.split("### Beside itself")[1].splitlines() if "1000 × 64" in line)
        self.assertRegex(row, r"1\.0[12]\d \(≤ 1\.0\d\d\) \| yes \| 1\.1\d\d \(≤ 1\.1\d\d\) \| \*\*no\*\* \|$")
        self.assertRegex(text.split("### Tasks against the runtimes")[1], r"\| 1000 × 64 \| 0\.8\d \(≤ 0\.8\d\) yes \|")
        self.assertNotIn("Beside itself", measure.report(made_up({"ringport-uring": 1.0, "tokio": 1.2})))

    def test_all_cells_together_say_what_one_cannot(self):
        runs, cells = Runs(), [f"echo c50 s{size} p1" for size in range(64, 74)]
        for seed, cell in enumerate(cells):
            made_up({"ringport-uring": 0.95, "ringport-uring-2": 0.95, "before-uring": 1.0}, 6, 0.06, seed=seed, cell=cell, runs=runs)
        alone = [ratios.paired(runs, cell, "ringport-uring", "before-uring") for cell in cells]
        self.assertTrue(any(ratio.upper > 1.0 for ratio in alone), "six noisy rounds do not show 5 %")
        together = ratios.pooled(runs, cells, "ringport-uring", "before-uring")
        self.assertEqual(len(together.ratios), 60)
        self.assertLess(together.upper, 1.0)
        row = next(line for line in measure.report(runs).splitlines() if line.startswith("| all together"))
        self.assertRegex(row, r"\| 0\.9\d\d \(≤ 0\.9\d\d\) \| yes \|$")
        self.assertNotIn("all together", measure.report(made_up({"ringport-uring": 1.0, "before-uring": 1.0})))


if __name__ == "__main__":
    unittest.main()
