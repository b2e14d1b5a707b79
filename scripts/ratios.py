"""Statistics for comparing servers that were measured in interleaved rounds.

Everything is a ratio within one round, because the machine drifts between rounds and not within one. A ratio is reported
as the median over the rounds with an upper bound for it, and judged beside a control: the same program measured twice
under two names. What the control cannot tell apart, nothing here claims to.
"""

import json
import random
import re
import statistics

SEED = 6628
RESAMPLES = 4000
CONFIDENCE = 0.95
# The median of fewer rounds than this lies above all of them more often than one time in twenty: no such bound exists.
FEWEST_ROUNDS = 5
# Runs during which other work used more than this much of a core, in percent, are dropped.
NOISE_PCT = 25.0
CPU = "srv_cpu_s_per_mmsg"  # seconds a million messages = microseconds a message
CPU_A_GB = "cpu_s_per_gb"  # seconds a gigabyte


class Runs:
    """Runs by cell, label and round, without those that cannot be used."""

    def __init__(self):
        self.cells = {}
        self.failed = {}
        self.noisy = 0
        self.total = 0
        self.congestion = set()

    def add(self, record, batch=0):
        """Takes one line of a results file. Rounds of different batches are different rounds."""
        self.total += 1
        cell, label = record["cell"], record["label"]
        rounds = self.cells.setdefault(cell, {}).setdefault(label, {})
        self.congestion.add(record.get("cc", "?"))
        if "error" in record:
            self.failed.setdefault((cell, label), []).append(record["error"])
        elif record.get("other_pct", 0) > NOISE_PCT:
            self.noisy += 1
        else:
            rounds[(batch, record.get("round", 0))] = record

    @classmethod
    def read(cls, files):
        runs = cls()
        for batch, name in enumerate(files):
            with open(name, encoding="utf-8") as lines:
                for line in lines:
                    if line.strip():
                        runs.add(json.loads(line), batch)
        return runs

    def usable(self):
        return sum(len(rounds) for cell in self.cells.values() for rounds in cell.values())

    def values(self, cell, label, field=CPU):
        """The field's positive values by round. A server that used no measurable time was not measured."""
        rounds = self.cells.get(cell, {}).get(label, {})
        return {number: run[field] for number, run in rounds.items() if run.get(field, 0) > 0}

    def median(self, cell, label, field=CPU):
        values = self.values(cell, label, field).values()
        return statistics.median(values) if values else None


class Ratio:
    """Paired ratios, their median and the upper bound of that."""

    def __init__(self, ratios, against="", crossed=True):
        self.ratios = list(ratios)
        self.against = against
        # False if there were too few rounds to choose the best column in one half and compare in the other.
        self.crossed = crossed
        self.median = statistics.median(self.ratios)
        self.upper = upper_bound(self.ratios)
        self.enough = len(self.ratios) >= FEWEST_ROUNDS


def upper_bound(ratios, seed=SEED):
    """One-sided bound of the median by the percentile bootstrap, with a fixed seed so that it can be repeated."""
    source = random.Random(seed)
    medians = sorted(statistics.median(source.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return medians[min(int(CONFIDENCE * RESAMPLES), RESAMPLES - 1)]


def paired(runs, cell, label, other, field=CPU):
    """`label` divided by `other`, round by round; None without a common round."""
    mine, theirs = runs.values(cell, label, field), runs.values(cell, other, field)
    ratios = [mine[number] / theirs[number] for number in sorted(mine.keys() & theirs.keys())]
    return Ratio(ratios, other) if ratios else None


def pooled(runs, cells, label, other, field=CPU):
    """The rounds of several cells as if they were of one: what a single cell has too few rounds for, all together may show."""
    found = [paired(runs, cell, label, other, field) for cell in cells]
    ratios = [ratio for one in found if one for ratio in one.ratios]
    return Ratio(ratios, other) if ratios else None


def control(runs, cell, label, twin, field=CPU):
    """How far apart two identical servers may look: the larger bound of both directions, so that it is at least the
    noise and does not depend on which of the two is called the first."""
    return pooled_control(runs, [cell], label, twin, field)


def pooled_control(runs, cells, label, twin, field=CPU):
    """The same from the rounds of several cells."""
    there, back = pooled(runs, cells, label, twin, field), pooled(runs, cells, twin, label, field)
    if there is None:
        return None
    return there if there.upper >= back.upper else back


def best(runs, cell, columns, rounds, field=CPU):
    """The column with the lowest median in these rounds."""
    medians = {}
    for column in columns:
        values = [value for number, value in runs.values(cell, column, field).items() if number in rounds]
        if values:
            medians[column] = statistics.median(values)
    return min(medians, key=medians.get) if medians else None


def against_best(runs, cell, label, columns, field=CPU):
    """`label` against the best of several columns, cross-fitted.

    The lowest of several noisy numbers is lower than the best server really is. So the best column is chosen in the
    even rounds and compared in the odd ones, and the other way round.
    """
    mine = runs.values(cell, label, field)
    numbers = sorted(set().union(mine, *(runs.values(cell, column, field) for column in columns)))
    halves = [set(numbers[0::2]), set(numbers[1::2])]
    ratios, chosen = [], []
    for choose_in, compare_in in (halves, halves[::-1]):
        column = best(runs, cell, columns, choose_in, field)
        if column is None:
            continue
        theirs = runs.values(cell, column, field)
        found = [mine[number] / theirs[number] for number in sorted(compare_in & mine.keys() & theirs.keys())]
        if found and column not in chosen:
            chosen.append(column)
        ratios += found
    if ratios:
        return Ratio(ratios, ", ".join(chosen))
    column = best(runs, cell, columns, set(numbers), field)
    plain = paired(runs, cell, label, column, field) if column else None
    return Ratio(plain.ratios, column, crossed=False) if plain else None


def within(ratio, bound, noise):
    """The verdict: True or False, or None if something was not measured, or too seldom."""
    if ratio is None or noise is None or not (ratio.enough and noise.enough):
        return None
    return ratio.upper <= bound * noise.upper


def connections(cell):
    """Number of connections in the name of a cell."""
    found = re.search(r"\bc(\d+)\b", cell)
    return int(found.group(1)) if found else 0
