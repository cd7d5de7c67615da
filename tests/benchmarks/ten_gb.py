"""A file of 10 GB, of text or of chats, and a build of it by two workers: when it begins, and what it holds meanwhile.

What `LIMIT_S` leaves no time for is left out, and told: the build is ended by SIGTERM then, and the same command goes
on for a tenth of that time, to see that it does.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

from tests.benchmarks.data import SHARED, require
from tests.benchmarks.memory import run_json
from tests.benchmarks.pairs import Figure
from tests.benchmarks.programs import program

SIZE = 10_000_000_000  # bytes; as much again is written, and deleted with the folder
ASKED = 5_000_000  # bytes of it, about which a teacher is asked
LIMIT_S = 600.0  # of a build; the whole of either takes two hours and more of processor
PEOPLE = SHARED / "data/tinyshakespeare.txt"
SPEECHES_OF_A_CHAT = 8
BLOCKS = 64  # of which the file is made, in an order that was drawn: more would take long to write
LOOK_S = 0.2
BOUND_GB, ALLOWED, FIRST_S = 1.0, 1.3, 10.0
VOCABULARY = 8192
TEMPLATE = """\
{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}\
{% if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}\
{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
TEXT = 'kind = "text"\npath = "many.txt"\nblock = 1024\nlong_documents = "split"\n'
CHAT = 'kind = "chat"\npath = "many.jsonl"\nlength = 1024\n'
JOB = """
cache = "{cache}"
[[dataset]]
name = "d"
{section}tokenizer = "model"
part = [0.0, {part}]
[cluster]
kind = "local"
workers = 2
"""
TEACHER = """
[[teacher]]
name = "t"
kind = "transformers"
path = "model"
encoding = { kind = "sparse", k = 16 }
"""


def measure_text(folder: Path, size: int = SIZE, limit_s: float = LIMIT_S) -> Iterator[Figure]:
    """Yield what a build of running text takes."""
    yield from _measure("text", folder, size, limit_s)


def measure_chats(folder: Path, size: int = SIZE, limit_s: float = LIMIT_S) -> Iterator[Figure]:
    """Yield what a build of chats takes."""
    yield from _measure("chat", folder, size, limit_s)


class _Watched(NamedTuple):
    """What was seen of a command: its status, and by the clock and of its processes' time; peaks in bytes."""

    status: int
    planned_s: float
    committed_s: float
    wall_s: float
    planned_cpu_s: float
    committed_cpu_s: float
    cpu_s: float
    command: int
    workers: list[int]


def _measure(kind: str, folder: Path, size: int, limit_s: float) -> Iterator[Figure]:
    section = _write(kind, folder, size)
    job, asked = folder / "job.toml", folder / "asked.toml"
    job.write_text(JOB.format(section=section, cache="cache", part=1.0))
    asked.write_text(JOB.format(section=section, cache="asked", part=min(1.0, ASKED / size)) + TEACHER)
    build = program("cache", "build", job)
    began = time.perf_counter()
    bound = _bound(job)
    yield Figure(f"{size / 1e9:g} GB, {kind}: a dry run", [time.perf_counter() - began], FIRST_S, "at most", " s")
    runs = [_watch(build, folder / "cache", limit_s)]
    if runs[0].status == 128 + signal.SIGTERM:
        runs.append(_watch(build, folder / "cache", limit_s / 10))
    yield Figure(f"{kind}: until there is a plan", [runs[0].planned_s], FIRST_S, "at most", " s")
    yield Figure(f"{kind}: until a shard is committed", [runs[0].committed_s], 6 * FIRST_S, "at most", " s")
    yield from _memory(kind, runs, bound)
    ended = ", ".join(f"{one.status} after {one.wall_s:.0f} s, {one.cpu_s:.0f} s of processor" for one in runs)
    print(
        f"{kind}: {_told(folder, size)}; the plan took {runs[0].planned_cpu_s:.1f} s of processor; ended with {ended}"
    )
    taught = _watch(program("cache", "build", asked), folder / "asked", limit_s)
    yield from _memory(f"{kind}, a teacher asked about {ASKED / 1e6:g} MB of it", [taught], _bound(asked))
    print(f"{kind}: asked, ended with {taught.status} after {taught.wall_s:.0f} s, {taught.cpu_s:.0f} s of processor")


def _bound(job: Path) -> int:
    """Return the bytes that a dry run promises no worker goes beyond."""
    return int(run_json([*program("cache", "build", job), "--dry-run", "--json"])["worker_memory_bytes"])


def _memory(what: str, runs: Sequence[_Watched], bound: int) -> Iterator[Figure]:
    """Yield a worker's bound, and what workers and command held."""
    yield Figure(f"{what}: bound of a worker", [bound / 1e9], BOUND_GB, "at most", " GB")
    peaks = [peak / bound for run in runs for peak in run.workers]
    yield Figure(f"{what}: peaks of workers / the bound", peaks, ALLOWED, "at most")
    yield Figure(f"{what}: peak of the command", [run.command / 1e9 for run in runs], BOUND_GB, "at most", " GB")


def _told(folder: Path, size: int) -> str:
    """Return how far a build came."""
    status = subprocess.run(program("cache", "status", folder / "cache", "--json"), capture_output=True, check=False)
    (stage,) = json.loads(status.stdout)["stages"]
    share = stage["shards_done"] / stage["shards"]
    stored = sum(path.stat().st_size for path in (folder / "cache").rglob("*.zip"))
    return (
        f"{share * size / 1e9:.3f} of {size / 1e9:g} GB read, {stage['shards_done']:,} of {stage['shards']:,} shards, "
        f"{stage['rows_done']:,} rows, {stored / 1e9:.3f} GB stored"
    )


def _watch(command: list[str], cache: Path, limit_s: float) -> _Watched:
    """Run a command, end it by SIGTERM after a time, and return what was seen of it and of its processes."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    watched, peaks, told = psutil.Process(process.pid), dict[int, int](), False
    seen: dict[str, float] = {}
    used: dict[int, float] = {}  # seconds of processor, of each process that there was
    cpu_s: dict[str, float] = {}
    patterns = {"plan": "*/plan/*.parquet", "commit": "*/ingest/*.parquet"}
    while process.poll() is None:
        passed = time.perf_counter() - began
        for what, pattern in patterns.items():
            if what not in seen and next(cache.glob(pattern), None):
                seen[what] = passed
                cpu_s[what] = sum(used.values())
        for one in (watched, *_children(watched)):
            peaks[one.pid] = max(peaks.get(one.pid, 0), _peak(one.pid))
            used[one.pid] = max(used.get(one.pid, 0.0), _cpu_s(one))
        if passed > limit_s and not told:
            process.terminate()
            told = True
        time.sleep(LOOK_S)
    wall_s = time.perf_counter() - began
    of_command = peaks.pop(process.pid, 0)
    # the processes that only start others are small
    workers = [peak for peak in peaks.values() if peak > 100e6]
    never = float("inf")
    at = seen.get("plan", never), seen.get("commit", never)
    cpu = cpu_s.get("plan", never), cpu_s.get("commit", never), sum(used.values())
    return _Watched(process.returncode, *at, wall_s, *cpu, of_command, workers)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _cpu_s(process: psutil.Process) -> float:
    try:
        return sum(process.cpu_times()[:2])
    except psutil.Error:
        return 0.0


def _peak(pid: int) -> int:
    """Return the largest resident size that a process ever had, in bytes; 0: it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _write(kind: str, folder: Path, size: int) -> str:
    """Write a file of about a size, and the folder of a model with its tokenizer; return the dataset's section."""
    folder.mkdir(parents=True, exist_ok=True)
    text = require(PEOPLE).read_text()
    speeches = [part for part in text.split("\n\n") if ":\n" in part]
    _write_model(folder / "model", text)
    draw, written = np.random.default_rng(0), 0
    blocks = [_block(kind, speeches, draw) for _ in range(min(BLOCKS, 1 + size // 2**22))]
    with (folder / ("many.txt" if kind == "text" else "many.jsonl")).open("wb") as file:
        while written < size:
            written += file.write(blocks[draw.integers(len(blocks))])
    return TEXT if kind == "text" else CHAT


def _block(kind: str, speeches: Sequence[str], draw: np.random.Generator) -> bytes:
    """Return some lines, a few megabytes: speeches in an order that was drawn."""
    drawn = draw.integers(0, len(speeches), (4096, SPEECHES_OF_A_CHAT)).tolist()
    if kind == "text":
        lines = ["\n".join(speeches[i] for i in row) for row in drawn]
    else:
        lines = [json.dumps({"messages": [_message(i, speeches[one]) for i, one in enumerate(row)]}) for row in drawn]
    return ("\n".join(lines) + "\n").encode()


def _message(i: int, text: str) -> dict[str, str]:
    return {"role": ("user", "assistant")[i % 2], "content": text}


def _write_model(folder: Path, text: str) -> None:
    """Write a Llama of a few kilobytes, and a tokenizer whose tokens are words: the fastest that `tokenizers` has."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    specials = ["<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.WordLevelTrainer(vocab_size=VOCABULARY, special_tokens=specials, show_progress=False)
    words.train_from_iterator([text], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|im_end|>", chat_template=TEMPLATE)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=1024, **sizes)).save_pretrained(
        folder
    )
