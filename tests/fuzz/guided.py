"""Cases chosen by what they reach in our code: `python -m tests.fuzz.guided --cases N`, where atheris is installed.

libFuzzer keeps what reached a new line, and changes it further: at times by bytes of its own choice, at times as
`changes.py` does, so that digests and structure are right again. A reader may give any value here, or an error of ours.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from random import Random

from storage.errors import StillroomError
from tests.fuzz.__main__ import tell_once


def main() -> None:
    """End the process itself, with 1 if any reader did what none may: libFuzzer never returns."""
    import atheris  # type: ignore[import-not-found, unused-ignore]  # an extra of this program alone

    options = argparse.ArgumentParser(prog="python -m tests.fuzz.guided")
    options.add_argument("--cases", type=int, default=10_000)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--only", default="", help="readers whose name has this")
    asked = options.parse_args()
    folder = tempfile.TemporaryDirectory(prefix="fuzz-")
    corpus = Path(folder.name) / "corpus"
    corpus.mkdir()
    with atheris.instrument_imports(include=["storage", "student_train", "teacher_cache", "jobs"]):
        from tests.fuzz.readers import all_readers

        readers = [reader for reader in all_readers(Path(folder.name)) if asked.only in reader.name]
    for number, reader in enumerate(readers):
        (corpus / reader.name.replace("/", "-")).write_bytes(bytes([number]) + reader.whole)
    faults: Counter[str] = Counter()
    done: Counter[str] = Counter()
    refused: Counter[str] = Counter()

    def one(data: bytes) -> None:
        if len(data) > 1:
            reader = readers[data[0] % len(readers)]
            done[reader.name] += 1
            try:
                reader.take(data[1:], f"by coverage: {data[1:1500]!r}")
            except StillroomError:
                refused[reader.name] += 1
            except AssertionError as fault:
                tell_once(faults, str(fault))
        if done.total() >= asked.cases:
            for name, cases in done.items():
                print(f"{name:45} {cases:>9,} cases, {refused[name]:>9,} refused")  # noqa: T201
            found = f"{faults.total():,} faults of {len(faults)} kinds"
            print(f"{done.total():,} cases, {refused.total():,} refused, {found}", flush=True)  # noqa: T201
            folder.cleanup()
            os._exit(int(bool(faults)))

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        random = Random(seed)
        if len(data) < 2 or random.random() < 0.1:  # another reader, as it should be
            number = random.randrange(len(readers))
            return bytes([number]) + readers[number].whole[: max_size - 1]
        reader = readers[data[0] % len(readers)]
        if random.random() < 0.5:
            try:
                changed = random.choice((*reader.seals, *reader.forges))(random, data[1:])
            except Exception:  # what was changed before may be no JSON, no table any more
                changed = atheris.Mutate(data[1:], max_size - 1)
        else:
            changed = atheris.Mutate(data[1:], max_size - 1)
        return data[:1] + changed[: max_size - 1]

    longest = 2 * max(len(reader.whole) for reader in readers)
    flags = [f"-seed={asked.seed}", f"-max_len={longest}", "-timeout=0", "-rss_limit_mb=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *flags, f"-artifact_prefix={folder.name}/", str(corpus)], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
