# SPDX-License-Identifier: Apache-2.0
"""Two sides measured in turns: our programs, a peer that answers over a pipe, and the table of their ratios."""
import argparse
import json
import os
import statistics
import subprocess
import time


def options(description, build="build/host"):
    """What the scripts are asked with: the build tree, the turns, and whether this process is the peer."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=build, help=f"the build tree (default {build})")
    parser.add_argument("--turns", type=whole(1, 1000), default=7, help="turns of each side (default 7)")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    return parser


def whole(least, most):
    """The type of an option: a whole number of a range."""

    def convert(text):
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, found '{text}'")
        return int(text)

    return convert


def benchmarks(program, pattern):
    """Runs a Google Benchmark program once: the counters of each row by its name. A wrong result ends the script."""
    run = subprocess.run(
        [program, f"--benchmark_filter={pattern}", "--benchmark_format=json"],
        check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    rows = json.loads(run.stdout)["benchmarks"]
    for row in rows:
        if row.get("error_occurred"):
            raise SystemExit(f"{program}: {row['name']}: {row['error_message']}")
    return {row["name"].split("/iterations")[0]: row for row in rows}


def median_seconds(count, call, before=lambda: None):
    """The median of `count` calls, each after `before`, which is not counted."""
    seconds = []
    for _ in range(count):
        before()
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


class Peer:
    """One or more processes of a peer: each gets every question as a line, the first one answers in seconds."""

    def __init__(self, command, environments=({},)):
        self.processes = [
            subprocess.Popen(command, env={**os.environ, **more}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for more in environments]

    def seconds(self, question):
        for process in self.processes:
            process.stdin.write(question + "\n")
            process.stdin.flush()
        answer = self.processes[0].stdout.readline()
        if not answer:
            raise SystemExit(f"the peer ended at '{question}'")
        return float(answer)

    def close(self):
        for process in self.processes:
            process.stdin.close()
        for process in self.processes:
            process.wait()


class Table:
    """Rows of one figure of ours, one of a peer (higher is better) and the least ratio that is asked for."""

    def __init__(self):
        self.rows = {}

    def add(self, name, ours, theirs, target):
        """One turn of a row."""
        self.rows.setdefault((name, target), []).append((ours, theirs))

    def show(self, unit):
        print(f"{'':68}{'ours':>9}{'peer':>9}  {'ratio':>6}  {'least, most':>13}  {'target':>6}")
        print(f"{'':68}{unit:>9}{unit:>9}")
        for (name, target), turns in self.rows.items():
            ratios = [ours / theirs for ours, theirs in turns]
            ratio = statistics.median(ratios)
            verdict = "" if target is None else f"{target:6.2f}  {'PASS' if ratio >= target else 'below'}"
            ours, theirs = (statistics.median(side) for side in zip(*turns))
            spread = f"{min(ratios):.2f}, {max(ratios):.2f}"
            print(f"{name:68}{ours:9.4g}{theirs:9.4g}  {ratio:6.2f}  {spread:>13}  {verdict}")
