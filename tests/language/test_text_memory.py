"""A text of any size is built within one bound: what is held is a range of it, not the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from storage.language.tokenizer import train_tokenizer
from tests.benchmarks.memory import peak_bytes
from tests.benchmarks.programs import program
from tests.teacher_cache.toys import write_job

LINE = "Full fathom five thy father lies; of his bones are coral made; those are pearls that were his eyes. "
SMALL, LARGE = 2**20, 12 * 2**20  # bytes; a file that is tokenised whole takes some 150 times the difference, 1.6 GB
ALLOWED = 300 * 2**20

BLOCKS = 'block = 128\nlong_documents = "split"\nrows_per_shard = 256\n'
COLUMN = 'column = "t"\n'
CLASSES = 'column = "t"\nlabel = "c"\nlength = 64\nrows_per_shard = 512\n'


def write(path: Path, size: int) -> None:
    """Write a text of about a size: running text, or lines of some kind of table."""
    lines = (f"{number} {LINE * 3}" for number in range(size // (3 * len(LINE))))
    with path.open("w") as file:
        if path.suffix == ".csv":
            file.write("t,c\n")
        for number, line in enumerate(lines):
            if path.suffix == ".jsonl":
                file.write(json.dumps({"t": line}) + "\n")
            else:
                file.write(f"{line},{number % 3}\n" if path.suffix == ".csv" else f"{line}\n")


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(
    ("name", "options"),
    [("t.txt", BLOCKS), ("t.jsonl", BLOCKS + COLUMN), ("t.csv", CLASSES)],
    ids=["text", "lines", "classes"],
)
def test_the_peak_of_a_build_does_not_grow_with_a_text(tmp_path: Path, name: str, options: str) -> None:
    peaks = []
    for size in (SMALL, LARGE):
        folder = tmp_path / str(size)
        folder.mkdir()
        write(folder / name, size)
        (folder / "t.json").write_bytes(train_tokenizer([LINE] * 9, 300, "<|endoftext|>"))
        section = f'[[dataset]]\nname = "t"\nkind = "text"\npath = "{name}"\ntokenizer = "t.json"\n{options}'
        peaks.append(peak_bytes(program("cache", "build", write_job(folder, section)), children=False))
    assert peaks[1] - peaks[0] < ALLOWED, [peak // 2**20 for peak in peaks]
