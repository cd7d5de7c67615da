"""A language model that is asked for features alone: vectors of labelled positions, no head, no agreement with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from storage.cache import Cache
from storage.cache.verify import verify
from storage.errors import MissingCapability
from storage.inputs.ragged import Ragged
from student_train.preparing.prepare import prepare
from student_train.running.train import train_students
from tests.language.toys import lines_cache, request, small_gpt

EMBEDDER = '''
"""A body of 8 numbers a token; its head may be called so many times."""
import torch
from torch import nn


class Head(nn.Module):
    def __init__(self, times):
        super().__init__()
        self.times = times

    def forward(self, x):
        self.times -= 1
        assert self.times >= 0, "nobody should ask for scores"
        return x[..., :3]  # no vocabulary has 3 words


class Embedder(nn.Module):
    def __init__(self, times):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8)), Head(times)

    def forward(self, tokens):
        return self.head(self.body(tokens)), None


def build(times=1):
    return Embedder(times)
'''
TEACHER = (
    '[[teacher]]\nname = "right"\nfactory = "embedder.py:build"\nencoding = { kind = "none" }\n'
    'features.seen = { layer = "body", pool = "none", dtype = "fp32" }\n'
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("alone")
    (folder / "embedder.py").write_text(EMBEDDER)
    return lines_cache(folder, TEACHER)


def test_labelled_positions_have_features_and_no_head_is_asked(cache: Cache) -> None:
    space: dict[str, object] = {}
    exec(EMBEDDER, space)
    body = space["build"]().body  # type: ignore[operator]
    catalogue, count = cache.catalogue(), 0
    assert catalogue.teacher("counting", "right").uses == ("labelled_positions", "features_alone")
    for shard in sorted(catalogue.committed("counting", "right")):
        found = cache.read_targets("counting", "right", shard, names=["feature/seen"])["feature/seen"]
        inputs, labels = cache.read_rows("counting", shard), cache.read_labels("counting", shard)
        assert isinstance(inputs, Ragged)
        tokens = torch.from_numpy(np.asarray(inputs.flat_T)).long()
        labels_T = np.asarray(labels.flat_T if isinstance(labels, Ragged) else labels)
        expected = body(tokens).detach()[torch.from_numpy(labels_T >= 0)]
        assert torch.allclose(torch.from_numpy(np.asarray(found)), expected, atol=1e-6)
        commit = catalogue.read_commits("counting", "right")[shard]
        assert commit.about["answered"] == {"labelled": len(expected)}
        assert sum(commit.table["labelled"].to_pylist()) == len(expected)
        count += len(expected)
    assert count > 100
    assert cache.samples().of("counting", ["right"])["right_entropy"].null_count() == 40
    assert not verify(cache).bad


def test_students_learn_from_them_and_are_compared_with_nobody(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(MissingCapability) as caught:
        prepare(request(cache, tmp_path, small_gpt()))
    assert "features alone" in str(caught.value.found)
    assert 'kind = "dense"' in str(caught.value.do)
    hint = {"loss": "hint", "teacher": "right", "feature": "seen", "student_layer": "network.body.norm"}
    for name, terms in (("taught", [{"loss": "labels"}, hint]), ("untaught", [{"loss": "labels"}])):
        asked = request(cache, tmp_path, small_gpt(name, objective=terms))
        (student,) = prepare(asked)
        assert (student.against, student.agree_with) == (None, None)
        assert student.why_not_against == "of teacher right is stored: no soft targets: features alone"
        summary = train_students(asked)
        assert summary.exit_code == 0, summary.errors
        (record,) = summary.records
        assert record.agreement is None
