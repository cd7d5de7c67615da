"""Run many cases: `python -m tests.fuzz --cases 1000000`. Says how many were refused, and every fault once."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.changes import chance
from tests.fuzz.readers import all_readers


def tell_once(faults: Counter[str], told: str) -> None:
    """Count a fault, and print the first of its kind."""
    kind = re.sub(r"\d+|0x[0-9a-f]+", "#", told.partition("; by ")[0])[:110]
    faults[kind] += 1
    if faults[kind] == 1:
        print(f"FAULT {told[:700]}", flush=True)  # noqa: T201


def main() -> int:
    """Return 1 if any reader did what none may."""
    options = argparse.ArgumentParser(prog="python -m tests.fuzz")
    options.add_argument("--cases", type=int, default=10_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", default="", help="readers whose name has this")
    options.add_argument("--cpu-s", type=float, default=float("inf"), help="end earlier, after so much CPU time")
    asked = options.parse_args()
    faults: Counter[str] = Counter()
    total = refused = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        readers = [reader for reader in all_readers(Path(folder)) if asked.only in reader.name]
        # of runs that end early each begins with other readers
        readers = readers[asked.seed % len(readers) :] + readers[: asked.seed % len(readers)] if readers else []
        share = sum(reader.weight for reader in readers)
        start_s = time.process_time()
        for reader in readers:
            cases = round(asked.cases * reader.weight / share)
            end_s, before_s = start_s + asked.cpu_s, time.process_time()
            done = no = 0
            for case in range(cases):
                if time.process_time() > end_s:
                    break
                try:
                    no += reader.check(chance(f"{asked.seed} {reader.name} {case}"))
                except AssertionError as fault:
                    tell_once(faults, f"case {case} of {fault}")
                done += 1
            total, refused = total + done, refused + no
            each_ms = 1000 * (time.process_time() - before_s) / max(done, 1)
            print(f"{reader.name:45} {done:>9,} cases, {no:>9,} refused, {each_ms:6.2f} ms each", flush=True)  # noqa: T201
    print(f"{total:,} cases, {refused:,} refused, {sum(faults.values()):,} faults of {len(faults)} kinds")  # noqa: T201
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
