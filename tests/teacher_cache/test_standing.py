"""A teacher at chance is told wherever a user looks; one that knows its dataset is told with its figure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from storage.cache import Cache
from storage.cache.standing import Standing, classes_told, standings
from storage.format.shards import ShardKey
from storage.tasks.base import Answered
from storage.tasks.image_classification import ImageClassification
from storage.tasks.language_model import LanguageModel
from tests.conftest import Program
from tests.teacher_cache.toys import build, write_job
from tests.texts.toys import word_tokenizer, write_texts

TEACHER = """
import torch
class Shifted(torch.nn.Module):  # the class of an image is its one pixel, less what is asked for
    def __init__(self, less):
        super().__init__()
        self.less = less
    def forward(self, x):
        return 9.0 * torch.nn.functional.one_hot((x.flatten(1)[:, 0] * 255).round().long() % 4 - self.less, 4).float()
def build(less=0): return Shifted(less)
"""


def write(folder: Path, labels: list[int], arguments: str = "") -> Path:
    np.savez(folder / "x.npz", inputs=np.array(labels, np.uint8).reshape(-1, 1, 1, 1), labels=np.array(labels))
    (folder / "t.py").write_text(TEACHER)
    dataset = (
        '[[dataset]]\nname = "d"\nkind = "arrays"\npath = "x.npz"\nclasses = ["a", "b", "c", "d"]\nrows_per_shard = 5\n'
    )
    return write_job(folder, dataset, f'[[teacher]]\nname = "t"\nfactory = "t.py:build"\n{arguments}')


def test_a_build_ends_with_each_teachers_accuracy_beside_chance(tmp_path: Path) -> None:
    for _ in range(2):  # also where nothing is missing: the ledger knows
        (standing,) = build(write(tmp_path, [0, 1, 2, 3, 3, 3])).standings
        assert standing.note == ("d/t: accuracy 100.0% of 6 labelled rows; chance 25.0%, the commonest class 50.0%")
        assert standing.answered is not None
        assert standing.answered[:2] == (6, 6)


def test_a_teacher_at_chance_is_a_warning(tmp_path: Path) -> None:
    (standing,) = build(write(tmp_path, [1, 2, 3, 3], "arguments = { less = 1 }\n")).standings
    assert standing.is_near_chance
    assert standing.note.startswith("warning: d/t is near chance: accuracy 0.0% of 4 labelled rows; chance 25.0%")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "",
            'from 0 to 1, and many a network wants 0 to 255 (pixels = "bytes"), or -1 to 1 (mean = [0.5], std = [0.5])',
        ),
        ('pixels = "bytes"\n', 'from 0 to 255 (pixels = "bytes"), and many a network wants 0 to 1, or -1 to 1'),
        ("mean = [0.0]\nstd = [1.0]\n", "from 0 to 1, less [0.0] and over [1.0]"),
    ],
)
def test_a_teacher_at_chance_is_told_with_the_range_of_the_pixels_that_it_was_given(
    tmp_path: Path, said: str, told: str
) -> None:
    (standing,) = build(write(tmp_path, [1, 2, 3, 3], f"arguments = {{ less = 1 }}\n{said}")).standings
    assert standing.is_near_chance
    assert standing.note.endswith(f"at the order of classes: it was given pixels {told}")


def test_a_figure_over_the_rows_to_train_on_too_is_told_as_such(tmp_path: Path) -> None:
    job = write(tmp_path, [0, 1, 2, 3] * 10)
    job.write_text(job.read_text().replace("rows_per_shard = 5\n", "rows_per_shard = 5\nvalidation = 0.5\n"))
    (standing,) = build(job).standings
    assert standing.note == (
        "d/t: accuracy 100.0% of 40 labelled rows; chance 25.0%, the commonest class 25.0%; "
        "over train and validation, and a teacher trained on the former is better there"
    )


@pytest.mark.parametrize("command", ["status", "info"])
def test_a_look_at_a_cache_warns_of_a_teacher_at_chance(tmp_path: Path, program: Program, command: str) -> None:
    build(write(tmp_path, [1, 2, 3, 3], "arguments = { less = 1 }\n"))
    told = "warning: d/t is near chance: accuracy 0.0% of 4 labelled rows"
    assert told in " ".join(program("cache", command, tmp_path / "cache").out.split())
    (said,) = json.loads(program("cache", command, tmp_path / "cache", "--json").out)["teachers"]
    assert (said["teacher"], said["is_near_chance"]) == ("t", True)


@pytest.mark.parametrize(
    ("correct", "labels", "near"),
    [(40, [25] * 4, False), (39, [25] * 4, True), (69, [70, 10, 10, 10], True), (70, [70, 10, 10, 10], False)],
    ids=["0.2 of the way", "less", "less than the commonest class", "as much"],
)
def test_near_chance_is_below_a_fifth_of_the_way_or_the_commonest_class(
    correct: int, labels: list[int], near: bool
) -> None:
    assert ImageClassification().standing(Answered(100, correct, 0.0), 4, labels)[1] == near


def test_a_language_model_is_told_by_its_perplexity() -> None:
    text, near = LanguageModel().standing(Answered(100, 10, 100 * float(np.log(8))), 1000, [])
    assert (text, near) == ("perplexity 8 of 100 tokens; chance 1,000", False)
    assert LanguageModel().standing(Answered(100, 0, 100 * float(np.log(900))), 1000, [])[1]


def test_shards_of_an_older_version_are_told_as_unknown(tmp_path: Path) -> None:
    build(write(tmp_path, [0, 1, 2, 3]))
    cache = Cache.open(str(tmp_path / "cache"))
    catalogue, ledger = cache.catalogue(), cache.catalogue().ledger()
    ledger.stages["d", "t", "plain"] = ledger.of("d", "t", "plain").with_columns(labelled=None)
    (found,) = standings(catalogue, ledger)
    assert isinstance(found, Standing)
    assert (found.answered, found.is_near_chance) == (None, False)
    json.dumps(found.as_values())


def test_a_build_tells_its_classes_with_their_rows(tmp_path: Path) -> None:
    assert build(write(tmp_path, [0, 1, 3, 3, 3, 3])).classes == [
        "d: 4 classes of 6 labelled rows: a 1, b 1, c 0, d 4",
        "note: d: no row is of class c",
    ]


def test_a_dataset_with_classes_and_no_label_is_told(tmp_path: Path) -> None:
    """As one has it whose `path` is a class's own folder."""
    job = write(tmp_path, [0, 1, 2, 3])
    np.save(tmp_path / "x.npy", np.zeros((4, 1, 1, 1), np.uint8))
    job.write_text(job.read_text().replace("x.npz", "x.npy"))
    assert build(job).classes == ["d: no row has a label; classes a, b, c, d by name alone"]


def test_labels_that_a_part_of_the_shards_counts_are_not_told_as_all(tmp_path: Path) -> None:
    build(write(tmp_path, [0, 1, 2, 3, 3, 3]))
    cache = Cache.open(str(tmp_path / "cache"))
    cut = cache.unchecked_commit(ShardKey("d", None, "plain", 0), with_table=True)
    about = {name: value for name, value in cut.about.items() if name != "labels"}
    cache.objects.put(cut.key.commit_path, replace(cut, about=about).to_parquet())
    catalogue = cache.catalogue()
    ledger = catalogue.ledger()
    assert classes_told(catalogue, ledger) == []
    (standing,) = standings(catalogue, ledger)
    assert "commonest" not in standing.text


def test_of_many_classes_the_first_and_the_fewest_are_told() -> None:
    class Looked:
        datasets: ClassVar = {"d": SimpleNamespace(classes=[f"c{i}" for i in range(20)])}

    counts = [9] * 15 + [2] + [9] * 4
    (line,) = classes_told(Looked(), SimpleNamespace(labels=lambda dataset: counts))  # type: ignore[arg-type]
    assert line.endswith("c11 9, … (the fewest: c15 2)")
    _, note = classes_told(Looked(), SimpleNamespace(labels=lambda dataset: [1] * 20))  # type: ignore[arg-type]
    assert note == "note: d: each class has one row: is its label a number that is to be told, or an id?"


def test_classes_that_look_alike_are_told(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(word_tokenizer())
    lines = ["label,text", *[f"{label},fish and fowl" for label in ["01", "1", "2", "fish"]]]
    (tmp_path / "texts.csv").write_text("\n".join(lines))
    dataset = (
        '[[dataset]]\nname = "d"\nkind = "text"\npath = "texts.csv"\ncolumn = "text"\nlabel = "label"\nlength = 9\n'
    )
    job = write_job(tmp_path, dataset + 'tokenizer = "tokenizer.json"\n')
    assert build(job).classes == [
        "d: 4 classes of 4 labelled rows: 01 1, 1 1, 2 1, fish 1",
        "note: d: '01' and '1' are 2 classes, and look like one",
    ]


def test_a_named_class_of_texts_without_a_row_is_told(tmp_path: Path) -> None:
    job = write_job(tmp_path, write_texts(tmp_path, extra='classes = ["plant", "fish", "stone", "fowl", "star"]'))
    assert build(job).classes[1:] == ["note: texts: no row is of classes stone, star"]
