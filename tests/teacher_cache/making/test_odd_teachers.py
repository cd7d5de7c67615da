"""Teachers whose layers are not each for themselves, that answer with vectors, or at some positions alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.errors import BadRequest
from storage.inputs import INPUTS
from storage.inputs.texts import PADDING
from student_train.students import Blueprint, build_student
from teacher_cache.making.asking import BATCH_ROWS, batches
from teacher_cache.making.make import Made, MakeRequest, agreement_of, make
from teacher_cache.making.rows import Rows
from teacher_cache.making.sizes import Target
from teacher_cache.making.subject import Subject
from teacher_cache.making.ways.copying import CopyOptions
from teacher_cache.making.ways.lowrank import LowRankOptions
from teacher_cache.making.ways.prune import PruneOptions
from teacher_cache.making.ways.quantize import QuantizeOptions
from teacher_cache.making.ways.scores import moved
from tests.teacher_cache.toys import build, write_digits, write_job
from tests.vectors.toys import vector_cache

NETS = '''
"""Networks as users have them."""

import torch
from torch import nn


class Repeated(nn.Module):
    """One layer under two names."""

    def __init__(self):
        super().__init__()
        layer = nn.Linear(64, 64)
        self.layers, self.head = nn.ModuleList([layer, layer]), nn.Linear(64, 10)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x.flatten(1)).relu()
        return self.head(x)


class Attending(nn.Module):
    """A layer of torch's own that keeps weights of its own, and a norm that has none."""

    def __init__(self):
        super().__init__()
        self.into, self.norm = nn.Conv1d(8, 16, 1), nn.BatchNorm1d(16, affine=False)
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 10)

    def forward(self, x):
        x = self.norm(self.into(x.flatten(1, 2))).transpose(1, 2)
        return self.head(self.attention(x, x, x)[0].mean(1))


class Reading(nn.Module):
    """A layer that is not called."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(nn.functional.linear(x.flatten(1), self.layer.weight).relu())


def reading():
    torch.manual_seed(0)
    return Reading()


def repeated():
    torch.manual_seed(0)
    return Repeated()


def attending():
    torch.manual_seed(0)
    return Attending()
'''


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a job of three teachers, and its cache."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "nets.py").write_text(NETS)
    names = ("repeated", "attending", "reading")
    teachers = [f'[[teacher]]\nname = "{name}"\nfactory = "nets.py:{name}"\n' for name in names]
    assert build(write_job(folder, write_digits(folder, 24), *teachers)).exit_code == 0
    return folder


def made(folder: Path, out: Path, teacher: str, way: str, options: Any) -> Made:
    job = folder / "job.toml"
    request = read_job(job, CacheJob).request(job, device="cpu")
    return make(MakeRequest(request, teacher, way, options, out, rows=16))


HALF = Target("flops", 0.5)


@pytest.mark.parametrize(
    ("way", "options"),
    [
        ("prune", PruneOptions(HALF, "magnitude", 0)),
        ("lowrank", LowRankOptions(HALF, None, "plain")),
        ("quantize", QuantizeOptions("channel")),
    ],
)
def test_a_layer_under_two_names_is_refused_for_one_of_them_would_stay(
    way: str, options: Any, odd: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadRequest, match="one layer at several places") as refused:
        made(odd, tmp_path / "out", "repeated", way, options)
    assert refused.value.found == "layers.0 is layers.1"


def test_a_layer_whose_weights_others_read_around_it_stays_as_it_is(odd: Path, tmp_path: Path) -> None:
    found = made(odd, tmp_path / "low", "reading", "lowrank", LowRankOptions(None, 0.3, "plain"))
    assert "left whole: layer, a Linear" in found.told
    found = made(odd, tmp_path / "int8", "reading", "quantize", QuantizeOptions("channel"))
    assert "left in floats: layer, whose weights are read without calling it" in found.told
    with pytest.raises(BadRequest, match="layer layer cannot be factorised") as refused:
        made(odd, tmp_path / "out", "reading", "lowrank", LowRankOptions(None, 0.3, "plain", ("layer",)))
    assert "whose weights are read without calling it" in str(refused.value.found)


def test_weights_that_a_layer_keeps_beside_its_weight_are_told_to_stay_floats(odd: Path, tmp_path: Path) -> None:
    found = made(odd, tmp_path / "int8", "attending", "quantize", QuantizeOptions("channel"))
    assert "left in floats: attention, a MultiheadAttention" in found.told
    found = made(odd, tmp_path / "low", "attending", "lowrank", LowRankOptions(None, 0.3, "plain"))
    assert "left whole: attention, a MultiheadAttention" in found.told


def test_a_norm_without_weights_is_no_obstacle_to_magnitudes(odd: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no channels that could be pruned"):  # attention reads them all together
        made(odd, tmp_path / "out", "attending", "prune", PruneOptions(HALF, "magnitude", 0, "channels"))


def test_students_are_made_of_a_teacher_of_vectors_and_compared_by_their_cosine(tmp_path: Path) -> None:
    vector_cache(tmp_path)
    whole = made(tmp_path, tmp_path / "whole", "bag", "copy", CopyOptions(None, None, 1.0, "first"))
    assert (whole.agreement, whole.has_classes) == (pytest.approx(1.0), False)
    again = made(tmp_path, tmp_path / "whole", "bag", "copy", CopyOptions(None, None, 1.0, "first"))
    assert (again.done_before, again.has_classes) == (True, False)


def speaker(seed: int) -> Any:
    torch.manual_seed(seed)
    options = {"depth": 1, "width": 12, "heads": 3}
    return build_student(
        Blueprint(architecture="gpt", options=options, num_classes=20, input_shape=(8,), mean=None, std=None)
    ).eval()


def test_positions_that_nobody_asks_about_count_for_nothing() -> None:
    one, other = speaker(0), speaker(1)
    tokens_BL = torch.randint(20, (6, 8), generator=torch.Generator().manual_seed(0))
    alike_BL = one(tokens_BL).argmax(-1) == other(tokens_BL).argmax(-1)
    alike_BL[0, 0] = True
    labels_BL = torch.where(alike_BL, 3, -1)
    asked = int(alike_BL.sum())
    found = agreement_of(other, Subject(one, Rows(tokens_BL.int(), labels_BL)))
    assert found in (1.0, (asked - 1) / asked)  # the first may differ

    last = labels_BL.new_full((6, 8), -1)
    last[:, :2] = 5  # what follows is padding, of which no position before knows
    far = moved(Subject(one, Rows(tokens_BL.int(), last)))
    assert far["body.positions.weight"][2:].abs().max() == 0


def test_labels_of_a_batch_are_as_long_as_its_longest_row() -> None:
    shown_BL = torch.full((BATCH_ROWS + 2, 5), PADDING, dtype=torch.int32)
    shown_BL[0], shown_BL[1:, :3] = 7, 8  # the last batch has no row of 5
    rows = Rows(shown_BL, shown_BL.where(shown_BL != PADDING, -1).long())
    subject: Any = SimpleNamespace(blueprint=SimpleNamespace(made_of=INPUTS["sequences"]), rows=rows)
    assert [(inputs_B.shape[1], labels_B.tolist()[-1]) for inputs_B, labels_B in batches(subject)] == [
        (5, [8, 8, 8, -1, -1]),
        (3, [8, 8, 8]),
    ]
