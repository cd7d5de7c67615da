"""Students of lower rank, and of int8 codes: what they say, what they weigh, and what is refused."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.errors import BadRequest
from student_train.students import Factored, Int8, Student, load_student
from student_train.students.remade.int8 import Codes
from teacher_cache.making.make import Made, MakeRequest, make
from teacher_cache.making.sizes import Target
from teacher_cache.making.subject import Subject
from teacher_cache.making.ways.lowrank import LowRankOptions, lowrank
from teacher_cache.making.ways.quantize import QuantizeOptions, quantize
from tests.teacher_cache.making.test_prune import subject_of


@pytest.fixture(scope="module")
def subject(pantry: Path) -> Subject:
    return subject_of(pantry)


def made(pantry: Path, out: Path, way: str, options: Any) -> tuple[Made, Student]:
    job = pantry / "job.toml"
    build = read_job(job, CacheJob).request(job, device="cpu")
    found = make(MakeRequest(build, "net", way, options, out, rows=40))
    return found, load_student(out, architecture=f"{pantry / 'net.py'}:build")


def off(student: Student, subject: Subject) -> float:
    """Return how far a student's scores are from its teacher's, as a share of their size."""
    inputs = subject.blueprint.made_of.arguments(subject.rows.shown_B)
    with torch.no_grad():
        expected = subject.student(inputs)
        return float((student(inputs) - expected).norm() / expected.norm())


def test_a_folder_that_is_there_may_lie_where_nothing_else_can_be_made(
    pantry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a volume of a container does, of a user who is not root."""
    out, real = tmp_path / "out", tempfile.TemporaryFile
    out.mkdir()

    def within(dir: Path) -> Any:  # noqa: A002 - as the library calls it
        if dir != out:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", within)
    made(pantry, out, "quantize", QuantizeOptions("channel"))
    assert (out / "student.json").exists()


@pytest.mark.parametrize("by", ["plain", "activations"])
def test_a_student_of_lower_rank_is_as_small_as_asked_and_loads(by: Any, pantry: Path, tmp_path: Path) -> None:
    found, student = made(pantry, tmp_path / "out", "lowrank", LowRankOptions(Target("flops", 0.7), None, by))
    assert 0.6 * found.whole.flops < found.size.flops <= 0.7 * found.whole.flops
    assert "each, a Conv2d" in "\n".join(found.told)  # in groups: it stays whole, which is told
    assert {change.kind for change in student.blueprint.changes} == {"factored"}


def test_what_rows_are_given_decides_what_is_left_out(subject: Subject) -> None:
    students = {
        by: lowrank(subject, LowRankOptions(Target("flops", 0.6), None, by))[0] for by in ("plain", "activations")
    }
    assert off(students["activations"], subject) < off(students["plain"], subject)


def test_all_of_the_energy_is_all_that_the_layer_says(subject: Subject) -> None:
    from teacher_cache.making.ways.lowrank import _spectra

    for by in ("plain", "activations"):
        (spectrum,) = _spectra(subject, ["hidden"], by).values()
        weight = (spectrum.left * spectrum.values) @ spectrum.right
        torch.testing.assert_close(weight.float(), subject.student.network.hidden.weight, rtol=1e-3, atol=1e-4)


def test_a_layer_that_cannot_be_factorised_is_named(subject: Subject) -> None:
    for name, what in (("each", "Conv2d in 8 groups"), ("stem.1", "BatchNorm2d"), ("nowhere", "no such layer")):
        with pytest.raises(BadRequest, match=f"layer {name} cannot be factorised") as caught:
            lowrank(subject, LowRankOptions(None, 0.5, "plain", (name,)))
        assert what in str(caught.value)


@pytest.mark.parametrize("share", [0.7, 0.55])
def test_a_head_that_costs_next_to_nothing_stays_whole_unless_it_is_named(subject: Subject, share: float) -> None:
    target = Target("flops", share)
    student, told = lowrank(subject, LowRankOptions(target, None, "plain"))
    assert {"head", "hidden"}.isdisjoint(change.layer for change in student.blueprint.changes)
    assert "left whole, for little is saved there: hidden, head (--layers cuts them)" in told
    named = ("stem.0", "layer.0.0", "layer.1.body.0.0", "layer.1.body.1.0", "layer.2.body.0.0", "head")
    student, told = lowrank(subject, LowRankOptions(target, None, "plain", named))
    assert "head" in {change.layer for change in student.blueprint.changes}
    assert not [each for each in told if "little is saved" in each]


def test_a_head_is_cut_where_the_size_cannot_be_reached_without_it(subject: Subject) -> None:
    student, told = lowrank(subject, LowRankOptions(Target("flops", 0.163), None, "plain"))
    assert "head" in {change.layer for change in student.blueprint.changes}
    assert not [each for each in told if "little is saved" in each]


def test_two_layers_that_would_be_larger_are_refused(subject: Subject) -> None:
    with pytest.raises(BadRequest, match="no layer would be smaller as two"):
        lowrank(subject, LowRankOptions(None, 0.999999, "plain", ("head",)))


@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_int8_weights_are_codes_on_disk_and_say_nearly_the_same(
    per: Any, pantry: Path, tmp_path: Path, subject: Subject
) -> None:
    found, student = made(pantry, tmp_path / "out", "quantize", QuantizeOptions(per))
    layers = [layer for layer in student.modules() if isinstance(layer, Codes)]
    assert len(layers) == 9
    assert {layer.codes.dtype for layer in layers} == {torch.int8}
    assert {len(layer.step) > 1 for layer in layers} == {per == "channel"}
    assert found.size.parameters == found.whole.parameters
    assert found.size.bytes < 0.5 * found.whole.bytes
    assert 0 < off(student, subject) < 0.05


def test_a_step_for_each_channel_is_nearer_than_one_for_all(subject: Subject) -> None:
    wild = subject_of_other_scales(subject)
    channel, tensor = (off(quantize(wild, QuantizeOptions(per))[0], wild) for per in ("channel", "tensor"))
    assert channel < tensor


def subject_of_other_scales(subject: Subject) -> Subject:
    import copy

    wild = copy.deepcopy(subject.student)
    with torch.no_grad():  # one channel that is a hundred times as large, which its norm takes back
        wild.network.stem[0].weight[0] *= 100
        wild.network.stem[1].running_mean[0] *= 100
        wild.network.stem[1].running_var[0] *= 1e4
    return subject._replace(student=wild)


def test_pruned_then_factorised_then_quantised_is_one_student(pantry: Path, subject: Subject) -> None:
    from student_train.students import build_student
    from teacher_cache.making.ways.prune import PruneOptions, prune

    student = prune(subject, PruneOptions(Target("flops", 0.5), "magnitude", 0))[0]
    student = lowrank(subject._replace(student=student), LowRankOptions(Target("flops", 0.8), None, "plain"))[0]
    student = quantize(subject._replace(student=student), QuantizeOptions("channel"))[0]
    again = build_student(student.blueprint).eval()
    again.load_state_dict(student.state_dict())
    assert off(again, subject) == off(student, subject)
    kinds = {type(change) for change in student.blueprint.changes}
    assert {Factored, Int8} <= kinds
