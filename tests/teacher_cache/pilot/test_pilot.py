"""A pilot: what it measures is what a build would store, and what it says of fidelity is right."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache
from storage.encodings import AnyEncoding, DenseEncoding, SparseEncoding
from storage.encodings.naming import as_toml, short_name
from storage.errors import BadRequest, BadTeacher, MissingSource
from storage.format.shards import ShardKey
from storage.tasks import TASKS
from teacher_cache.pilot.fidelity import Calibration, PilotAnswers, calibration_of_dense, density, measure
from teacher_cache.pilot.ladder import is_unbiased, ladder
from teacher_cache.pilot.pilot import Pilot, PilotRequest, run_pilot
from teacher_cache.pilot.rows import choose_sites, spread_runs
from teacher_cache.pilot.worth import Pace, weigh
from tests.teacher_cache.toys import (
    Silent,
    build,
    contents,
    teacher_section,
    write_digits,
    write_job,
    write_teacher,
)

SPARSE = 'encoding = { kind = "sparse", k = 3, n = 5, values = "8bit", temperatures = [1, 4] }\n'
TOKENS_TEACHER = '''
import torch
from torch import nn


class Tiny(nn.Module):
    """Scores of the next token, (B, L, V + 3): the vocabulary is padded."""

    def __init__(self, vocabulary):
        super().__init__()
        self.table = nn.Embedding(vocabulary, vocabulary + 3)

    def forward(self, tokens):
        return self.table(tokens)


def build(vocabulary):
    torch.manual_seed(0)
    return Tiny(vocabulary)
'''


def pilot_of(job: Path, *, rows: int = 64, watcher: Silent | None = None) -> list[Pilot]:
    read = read_job(job, CacheJob)
    request = read.request(job, device="cpu")
    return run_pilot(PilotRequest(request, read.fidelity, rows, workers=2, epochs=10), watcher or Silent())


def answers_of(logits: Any, *, labels: Any = None, num_classes: int | None = None) -> PilotAnswers:
    logits_NV = torch.as_tensor(logits, dtype=torch.float32)
    labels_N = torch.full((len(logits_NV),), -1) if labels is None else torch.as_tensor(labels)
    return PilotAnswers(logits_NV, num_classes or logits_NV.shape[1], labels_N, torch.arange(len(logits_NV)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_teacher(tmp_path)
    return tmp_path


# Fidelity, by hand


def test_dense_fp32_loses_nothing() -> None:
    found = measure(answers_of(torch.randn(20, 7)), DenseEncoding(temperatures=[1, 4]))
    assert found.kl == 0
    assert [(g.degrees < 1e-5, g.norm_ratio) for g in found.gradients.values()] == [(True, 1.0), (True, 1.0)]
    assert found.single is None


def test_the_kl_of_a_kept_class_and_an_even_tail_is_that_of_pencil_and_paper() -> None:
    answers = answers_of(torch.tensor([[0.7, 0.2, 0.1]]).log())
    found = measure(answers, SparseEncoding(k=1))
    assert found.kl == pytest.approx(0.2 * math.log(0.2 / 0.15) + 0.1 * math.log(0.1 / 0.15), abs=1e-3)  # rest in fp16


def test_a_nucleus_cut_spreads_its_tail_over_every_class_that_is_not_kept() -> None:
    answers = answers_of(torch.tensor([[0.9, 0.06, 0.03, 0.01], [0.4, 0.3, 0.2, 0.1]]).log())
    targets = answers.decoded(SparseEncoding(k=3, p=0.6))
    log_q = density(targets)
    assert log_q is not None
    assert log_q.exp().numpy() == pytest.approx(
        np.array([[0.9, 0.1 / 3, 0.1 / 3, 0.1 / 3], [0.4, 0.3, 0.15, 0.15]]), abs=1e-3
    )


@pytest.mark.parametrize("encoding", [SparseEncoding(k=2), SparseEncoding(k=4, values="8bit"), DenseEncoding()])
def test_what_is_decoded_is_a_distribution(encoding: AnyEncoding) -> None:
    log_q = density(answers_of(torch.randn(9, 6) * 3).decoded(encoding))
    assert log_q is not None
    assert log_q.exp().sum(1).numpy() == pytest.approx(np.ones(9), abs=1e-5)


def test_calibration_error_is_that_of_pencil_and_paper() -> None:
    expected = Calibration()
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.5, 0.5]])
    expected.add(probabilities.log(), torch.tensor([0, 1, 0, -1]))  # the last has no label
    # two rows at 0.9, half of them right; one at 0.6, right
    assert expected.error == pytest.approx((2 * 0.4 + 0.4) / 3)


def test_without_labels_there_is_no_calibration_error() -> None:
    answers = answers_of(torch.randn(5, 4))
    assert calibration_of_dense(answers) is None
    assert measure(answers, DenseEncoding()).calibration is None


def test_a_kl_does_not_depend_on_how_rows_are_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, encoding = answers_of(torch.randn(50, 8), labels=torch.arange(50) % 8), SparseEncoding(k=2)
    whole = measure(answers, encoding)
    monkeypatch.setattr("teacher_cache.pilot.fidelity.BLOCK_ELEMENTS", 24)
    cut = measure(answers, encoding)
    assert (cut.kl, cut.calibration) == pytest.approx((whole.kl, whole.calibration))


def zipf(rows: int, classes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return -1.2 * torch.arange(1, classes + 1).log() + 1.5 * torch.randn(rows, classes, generator=generator)


@pytest.mark.parametrize("encoding", [SparseEncoding(n=10), SparseEncoding(k=4, n=10)])
def test_draws_are_nearer_to_dense_the_more_of_them_are_averaged(encoding: SparseEncoding) -> None:
    found = measure(answers_of(zipf(200, 300)), encoding)
    assert found.single is not None
    ratio = math.tan(math.radians(found.gradients[1.0].degrees)) / math.tan(math.radians(found.single.degrees))
    assert ratio == pytest.approx(1 / math.sqrt(16), rel=0.25)
    assert found.gradients[1.0].norm_ratio == pytest.approx(1, abs=0.05)


def test_draws_alone_have_no_kl_and_are_marked_unbiased() -> None:
    found = measure(answers_of(zipf(20, 100)), SparseEncoding(n=10, temperatures=[1, 4]))
    assert (found.kl, found.calibration, list(found.gradients)) == (None, None, [1.0])
    assert is_unbiased(SparseEncoding(n=10))
    assert not is_unbiased(SparseEncoding(k=10))


def test_a_bucket_s_gradient_is_off_where_the_tail_is_not_even() -> None:
    found = measure(answers_of(zipf(50, 100)), SparseEncoding(k=2))
    assert found.gradients[1.0].degrees > 1


# The ladder


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100, 1000, 130_000])
def test_every_encoding_of_a_ladder_fits_the_classes_and_keeps_the_job_s_statistics(num_classes: int) -> None:
    own = DenseEncoding(dtype="fp16", temperatures=[1, 4], statistics=False)
    tried = ladder(num_classes, own)
    for encoding in tried:
        encoding.check(num_classes)
        assert (encoding.temperatures, encoding.statistics) == ([1, 4], False)
    assert tried.count(own) == 1
    assert len({short_name(encoding) for encoding in tried}) == len(tried)


def test_the_job_s_own_encoding_is_tried_with_its_own_options() -> None:
    own = SparseEncoding(k=5, n=3, seed=7, p=0.9)
    tried = ladder(50, own)
    assert own in tried
    assert {encoding.seed for encoding in tried if isinstance(encoding, SparseEncoding)} == {7}


@pytest.mark.parametrize(
    "encoding",
    [
        DenseEncoding(),
        DenseEncoding(dtype="int8", statistics=False),
        SparseEncoding(k=4, n=7, values="8bit", p=0.95, seed=3, temperatures=[1, 2.5], standardised_temperatures=[2]),
    ],
)
def test_what_a_pilot_says_to_write_is_read_back_as_the_same_encoding(encoding: AnyEncoding) -> None:
    written = tomllib.loads(as_toml(encoding))["encoding"]
    assert TypeAdapter(AnyEncoding).validate_python(written) == encoding


# Rows


@pytest.mark.parametrize(("num_rows", "wanted"), [(1, 1), (5, 100), (100, 5), (1000, 512), (60_000, 512), (65, 64)])
def test_rows_are_spread_over_the_dataset_and_none_is_taken_twice(num_rows: int, wanted: int) -> None:
    taken = [row for start, stop in spread_runs(num_rows, wanted) for row in range(start, stop)]
    assert taken == sorted(set(taken))
    assert 0.9 * min(num_rows, wanted) <= len(taken) <= min(num_rows, wanted)
    assert taken[0] == 0
    assert taken[-1] >= num_rows * (1 - 2 / min(64, wanted, num_rows))


def test_positions_of_tokens_are_labelled_ones() -> None:
    labels = torch.full((4, 10), -1)
    labels[:, 3:7] = 5
    chosen = choose_sites(TASKS["language_model"], labels, 8)
    assert len(chosen) == 8
    assert (labels.flatten()[chosen] == 5).all()


# Worth


@pytest.mark.parametrize(
    ("teach_s", "read_s", "workers", "views", "students"),
    [
        (1.0, 0.0, 1, 1, 1),  # one student of ten epochs is ten passes, the build is one
        (1.0, 0.0, 1, 25, 3),  # 25 passes against 10 a student
        (1.0, 0.0, 5, 25, 1),
        (1.0, 0.5, 1, 25, 5),  # reading takes half of what the cache saves
        (1.0, 1.0, 1, 1, None),
        (1.0, 2.0, 1, 1, None),
    ],
)
def test_a_cache_pays_from_so_many_students_on(
    teach_s: float, read_s: float, workers: int, views: int, students: int | None
) -> None:
    found = weigh(
        Pace(teach_s, 0.0, read_s),
        rows=100,
        stored_rows=100 * views,
        bytes_per_row=7.5,
        workers=workers,
        epochs=10,
    )
    assert (found.students, found.bytes) == (students, 750 * views)
    assert found.build_s == pytest.approx(100 * views * teach_s / workers)


# The whole story, with a real teacher


def test_a_pilot_measures_every_encoding_and_recommends_the_smallest_within_the_budget(folder: Path) -> None:
    watched = Silent()
    (found,) = pilot_of(write_job(folder, write_digits(folder, 100), teacher_section()), watcher=watched)
    assert (found.rows, found.rows_measured, found.num_classes, found.unit) == (100, 64, 10, "row")
    assert [trial.bytes_per_row for trial in found.trials] == sorted(trial.bytes_per_row for trial in found.trials)
    best = found.recommended
    assert best is not None
    assert best.fidelity.kl is not None
    assert best.fidelity.kl <= 0.001
    smaller = [trial for trial in found.trials if trial.bytes_per_row < best.bytes_per_row]
    assert all(trial.fidelity.kl is None or trial.fidelity.kl > 0.001 for trial in smaller)
    assert found.rows_per_s > 0
    assert all(done == total for done, total in watched.counts.values())


def test_a_budget_of_nothing_leaves_dense_fp32(folder: Path) -> None:
    job = write_job(folder, write_digits(folder, 40), teacher_section(), "[fidelity]\nmax_kl = 0\n")
    (found,) = pilot_of(job)
    assert found.recommended is not None
    assert short_name(found.recommended.encoding) == "dense fp32"


@pytest.mark.parametrize("extra", ["", 'encoding = { kind = "dense", dtype = "int8" }\n', SPARSE])
def test_bytes_per_row_are_those_of_a_built_shard(folder: Path, extra: str) -> None:
    job = write_job(folder, write_digits(folder, 60, rows_per_shard=60), teacher_section(extra=extra))
    (found,) = pilot_of(job, rows=60)
    build(job)
    commit = Cache.open(str(folder / "cache")).commit(ShardKey("digits", "toy", "plain", 0))
    stored = sum(member.size_bytes for member in commit.members)
    own = next(trial for trial in found.trials if trial.encoding == found.own)
    assert own.bytes_per_row * 60 == pytest.approx(stored)
    assert own.worth.bytes == pytest.approx(stored, abs=1)


def test_features_count_in_the_whole_and_not_in_an_encoding(folder: Path) -> None:
    dataset = write_digits(folder, 60, rows_per_shard=60)
    (without,) = pilot_of(write_job(folder, dataset, teacher_section()), rows=60)
    section = teacher_section(extra='features.h = { layer = "norm", dtype = "fp32", pool = "none" }\n')
    (found,) = pilot_of(write_job(folder, dataset, section), rows=60)
    assert found.feature_bytes_per_row > 500
    assert found.trials[0].bytes_per_row == without.trials[0].bytes_per_row
    grown = found.trials[0].worth.bytes - without.trials[0].worth.bytes
    assert grown == pytest.approx(60 * found.feature_bytes_per_row, abs=1)


def test_a_pilot_writes_nothing_and_does_not_look_at_the_cache(folder: Path) -> None:
    dataset = write_digits(folder, 40)
    build(write_job(folder, dataset, teacher_section()))
    before = contents(folder / "cache")
    job = write_job(folder, dataset, teacher_section(extra='encoding = { kind = "dense", dtype = "fp16" }\n'))

    def files() -> list[Path]:
        return sorted(path for path in folder.rglob("*") if "__pycache__" not in str(path))

    there = files()
    pilot_of(job)
    assert files() == there
    assert contents(folder / "cache") == before


def test_a_pilot_repeats(folder: Path) -> None:
    job = write_job(folder, write_digits(folder, 100), teacher_section(extra=SPARSE))
    (one,), (other,) = pilot_of(job), pilot_of(job)
    assert [(t.encoding, t.bytes_per_row, t.fidelity) for t in one.trials] == [
        (t.encoding, t.bytes_per_row, t.fidelity) for t in other.trials
    ]


def test_views_are_measured_as_the_teacher_would_be_shown_them_and_all_are_counted(folder: Path) -> None:
    views = '[views]\ncount = 5\ntransforms = [{ kind = "pad_crop", padding = 2 }]\n'
    (plain,) = pilot_of(write_job(folder, write_digits(folder, 60), teacher_section()))
    (found,) = pilot_of(write_job(folder, write_digits(folder, 60), teacher_section(), views))
    assert (found.rows, found.stored_rows, found.view) == (60, 300, "view-000")
    assert found.calibration != plain.calibration
    assert found.calibration is not None


def test_a_mixed_image_has_no_label_to_be_calibrated_against(folder: Path) -> None:
    views = '[views]\ncount = 1\ntransforms = [{ kind = "mixup" }]\n'
    (found,) = pilot_of(write_job(folder, write_digits(folder, 60), teacher_section(), views))
    assert found.calibration is None


def write_tokens(folder: Path, *, extra: str = "") -> Path:
    (folder / "tiny.py").write_text(TOKENS_TEACHER)
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, 50, 4001).astype(np.uint16))
    dataset = '[[dataset]]\nname = "book"\nkind = "tokens"\npath = "tokens.npy"\nblock = 20\nvocabulary = 50\n'
    teacher = f'[[teacher]]\nname = "tiny"\nfactory = "tiny.py:build"\narguments = {{ vocabulary = 50 }}\n{extra}'
    return write_job(folder, dataset, teacher)


def test_tokens_are_measured_position_by_position(tmp_path: Path) -> None:
    (found,) = pilot_of(write_tokens(tmp_path), rows=100)
    assert (found.unit, found.num_classes, found.rows_measured) == ("token", 50, 100)
    assert 3960 <= found.rows <= 4020  # 201 blocks of 20, the last of them short: positions with a label
    assert found.calibration is not None


def test_what_is_projected_of_tokens_is_of_those_with_a_label(tmp_path: Path) -> None:
    job = write_tokens(tmp_path)
    np.save(tmp_path / "mask.npy", np.arange(4001) % 4 == 0)
    job.write_text(job.read_text().replace("block = 20\n", 'block = 20\nmask = "mask.npy"\n'))
    (found,) = pilot_of(job, rows=40)
    assert found.rows == 201 * 5


def test_datasets_of_one_teacher_share_the_rows_by_their_sizes(folder: Path) -> None:
    digits = write_digits(folder, 200)
    small = digits.replace('name = "digits"', 'name = "more"')
    (found,) = pilot_of(write_job(folder, digits, small, teacher_section()), rows=80)
    assert (found.datasets, found.rows, found.rows_measured) == (("digits", "more"), 400, 80)


# Bad input


def test_a_job_without_a_teacher_is_told_so(folder: Path) -> None:
    with pytest.raises(BadRequest, match="has no teacher to measure"):
        pilot_of(write_job(folder, write_digits(folder, 20)))


@pytest.mark.parametrize(
    ("fault", "message"),
    [("nan", "gave NaN, \\+inf or nothing but -inf as logits"), ("probabilities", "returns probabilities")],
)
def test_a_teacher_that_gives_no_logits_is_refused(folder: Path, fault: str, message: str) -> None:
    job = write_job(folder, write_digits(folder, 40, marked=(3,)), teacher_section(fault=fault))
    with pytest.raises(BadTeacher, match=message):
        pilot_of(job)


def test_an_encoding_that_overflows_is_left_out_with_the_reason(folder: Path) -> None:
    job = write_job(folder, write_digits(folder, 40, marked=(3,)), teacher_section(fault="large"))
    (found,) = pilot_of(job)
    assert [short_name(encoding) for encoding, _ in found.skipped] == ["dense fp16"]
    assert "infinity" in found.skipped[0][1]
    assert "dense fp16" not in [short_name(trial.encoding) for trial in found.trials]


def test_a_dataset_of_which_nothing_can_be_read_is_told(folder: Path) -> None:
    pixels = np.zeros((4, 1, 8, 8), np.float32)
    np.savez(folder / "digits.npz", inputs=pixels * np.nan, labels=np.zeros(4, int))
    dataset = (
        f'[[dataset]]\nname = "d"\nkind = "arrays"\npath = "digits.npz"\nclasses = {json.dumps(list("0123456789"))}\n'
    )
    with pytest.raises(MissingSource, match="none of 4 rows of dataset d can be read"):
        pilot_of(write_job(folder, dataset, teacher_section()))


def test_a_teacher_of_other_classes_is_refused(folder: Path) -> None:
    write_teacher(folder, classes=7)
    with pytest.raises(BadTeacher, match="does not fit dataset digits"):
        pilot_of(write_job(folder, write_digits(folder, 20), teacher_section(classes=7)))
