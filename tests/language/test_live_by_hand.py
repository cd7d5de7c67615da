"""A student from a dense fp32 cache, and the same by hand with transformers and the teacher live: the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from storage.cache import Cache
from student_train.running.train import train_students
from student_train.students import load_student
from tests.language.by_hand import distil, fresh, noted_batches, stored
from tests.language.models import config_folder, hf_student, model_folder
from tests.language.toys import request
from tests.teacher_cache.toys import build, write_job

IDS, RATE, SEED = 61, 0.2, 3


def write_texts(folder: Path) -> str:
    """Write random texts of which a third is to be predicted; return the `[[dataset]]` of a job."""
    draws = np.random.default_rng(0)
    np.save(folder / "ids.npy", draws.integers(0, IDS, (60, 24)).astype(np.uint16))
    np.save(folder / "counts.npy", draws.random((60, 24)) < 1 / 3)
    return (
        f'[[dataset]]\nname = "counting"\nkind = "tokens"\npath = "ids.npy"\nmask = "counts.npy"\n'
        f"vocabulary = {IDS}\nvalidation = 0.25\nrows_per_shard = 16\n"
    )


def test_from_a_dense_fp32_cache_a_student_has_the_weights_of_a_loop_by_hand_with_its_teacher_live(
    tmp_path: Path,
) -> None:
    teacher = model_folder(tmp_path / "teacher", vocab_size=IDS, hidden_size=32)
    small = config_folder(tmp_path / "small", vocab_size=IDS)
    job = write_job(
        tmp_path, write_texts(tmp_path), '[[teacher]]\nname = "right"\nkind = "transformers"\npath = "teacher"\n'
    )
    assert build(job).exit_code == 0
    student = hf_student(
        small,
        objective=[{"loss": "kd", "teacher": "right", "temperature": 1.0}],
        optimizer="sgd",
        momentum=0.0,
        weight_decay=0.0,
        schedule="constant",
        learning_rate=RATE,
        seed=SEED,
        epochs=3,
    )
    with noted_batches() as batches:
        train_students(request(Cache.open(str(tmp_path / "cache")), tmp_path / "runs", student))
    by_hand = fresh(small, SEED)
    before = {name: tensor.clone() for name, tensor in by_hand.state_dict().items()}
    distil(by_hand, stored(teacher), batches, RATE)
    network = load_student(tmp_path / "runs" / "hf").network
    assert isinstance(network, torch.nn.Module)
    ours, theirs = network.state_dict(), by_hand.state_dict()
    assert len(batches) == 3 * 12  # of 4 rows
    assert max(float((theirs[name] - before[name]).abs().max()) for name in theirs) > 1e-2  # it has learned
    assert max(float((theirs[name] - ours[name]).abs().max()) for name in theirs) < 1e-6
