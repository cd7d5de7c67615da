"""Pruned students: smaller networks that say what the whole one says without the units that are gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache
from storage.errors import BadRequest, StaleCache
from student_train.students import load_student, size_of_student
from teacher_cache.making.make import Made, MakeRequest, make
from teacher_cache.making.rows import some_rows
from teacher_cache.making.sizes import Measure, Target
from teacher_cache.making.subject import Subject, as_student
from teacher_cache.making.ways.coupled import find_units
from teacher_cache.making.ways.prune import PruneOptions, smaller
from teacher_cache.making.ways.scores import By, score
from teacher_cache.teachers.kinds import KINDS


def pruned(pantry: Path, out: Path, *, by: By = "magnitude", share: float = 0.5, **request: Any) -> Made:
    measure: Measure = request.pop("measure", "flops")
    job = pantry / "job.toml"
    build = read_job(job, CacheJob).request(job, device="cpu")
    options = PruneOptions(Target(measure, share), by, request.pop("draw", 0))
    return make(MakeRequest(build, "net", "prune", options, out, **({"rows": 40} | request)))


def subject_of(pantry: Path) -> Subject:
    (teacher,) = read_job(pantry / "job.toml", CacheJob).teacher
    cache = Cache.open(str(pantry / "cache"))
    return as_student(
        teacher, KINDS["factory"].load(teacher), cache.dataset("digits"), some_rows(cache, "digits", 40, 0)
    )


@pytest.fixture(scope="module")
def subject(pantry: Path) -> Subject:
    return subject_of(pantry)


def test_units_are_those_that_stand_and_fall_together(subject: Subject) -> None:
    found = find_units(subject.student.network, (torch.rand(1, 1, 8, 8),))
    told = {each.name: (each.width, sorted({side.layer for side in each.sides})) for each in found.units}
    assert told["hidden"] == (24, ["head", "hidden"])
    assert told["layer.1.body.0.0"] == (8, ["layer.1.body.0.0", "layer.1.body.0.1", "layer.1.body.1.0"])
    # the sum couples both blocks; behind the flatten each channel is four numbers
    (summed,) = (each for each in found.units if any(side.layer == "each" for side in each.sides))
    assert {"layer.0.0", "layer.1.body.1.0", "layer.2.body.1.0", "hidden"} <= {side.layer for side in summed.sides}
    assert {side.layer: side.places.shape[1] for side in summed.sides}["hidden"] == 4
    assert (len(found.units), found.left) == (5, ())


@pytest.mark.parametrize("by", get_args(By))
def test_what_is_made_is_smaller_and_loads_like_any_student(by: By, pantry: Path, tmp_path: Path) -> None:
    made = pruned(pantry, tmp_path / "out", by=by)
    student = load_student(tmp_path / "out", architecture=f"{pantry / 'net.py'}:build")
    assert size_of_student(student) == made.size
    assert 0.4 * made.whole.flops < made.size.flops <= 0.5 * made.whole.flops
    assert made.size.parameters < made.whole.parameters
    assert all(parameter.count_nonzero() for parameter in student.parameters())


def test_a_smaller_network_says_what_the_whole_one_says_without_what_is_gone(subject: Subject) -> None:
    units = find_units(subject.student.network, (torch.rand(1, 1, 8, 8),)).units
    # `smaller` itself compares the two; here by hand, of the hidden layer alone
    keeps = [torch.arange(each.width) if each.name != "hidden" else torch.arange(0, 24, 2) for each in units]
    student = smaller(subject, units, keeps)
    inputs = subject.blueprint.made_of.arguments(subject.rows.shown_B)
    whole = subject.student.network
    hidden = whole.hidden(whole.pool(whole.each(whole.layer(whole.stem(subject.student.normalise(inputs))))).flatten(1))
    expected = (hidden.sigmoid()[:, ::2] @ whole.head.weight[:, ::2].T + whole.head.bias) * 3
    torch.testing.assert_close(student(inputs), expected, rtol=1e-4, atol=1e-4)


def test_units_that_depend_on_each_other_unseen_are_refused(subject: Subject) -> None:
    from storage.errors import BadTeacher

    (hidden,) = (e for e in find_units(subject.student.network, (torch.rand(1, 1, 8, 8),)).units if e.name == "hidden")
    blind = hidden._replace(sides=tuple(side for side in hidden.sides if side.layer != "head"))
    with pytest.raises(BadTeacher, match="does not see"):
        smaller(subject, [blind], [torch.arange(12)])


def test_scores_of_a_unit_that_does_nothing_are_the_lowest(pantry: Path) -> None:
    subject = subject_of(pantry)
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(subject.student.network.get_submodule("layer.1.body.0.1"), name)[3] = 0.0
        subject.student.network.get_submodule("layer.1.body.0.0").weight[3] = 0.0
        subject.student.network.get_submodule("layer.1.body.1.0").weight[:, 3] = 0.0
    units = find_units(subject.student.network, (torch.rand(1, 1, 8, 8),)).units
    place = [each.name for each in units].index("layer.1.body.0.0")
    for by in ("magnitude", "taylor", "activation"):
        scores = score(by, subject, units, 0)[place]
        assert scores[3] == scores.min() < scores.max(), by


def test_a_seed_draws_the_units_and_the_same_seed_the_same(subject: Subject) -> None:
    units = find_units(subject.student.network, (torch.rand(1, 1, 8, 8),)).units
    one, same, other = (score("random", subject, units, seed) for seed in (0, 0, 1))
    assert all(map(torch.equal, one, same))
    assert not all(map(torch.equal, one, other))


@pytest.mark.parametrize("measure", ["flops", "parameters"])
def test_a_target_that_no_student_reaches_is_refused_with_what_could_be(
    measure: Measure, pantry: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadRequest) as caught:
        pruned(pantry, tmp_path / "out", measure=measure, share=0.001)
    assert "with one unit left in every layer" in str(caught.value)
    assert f"--{measure} 0." in str(caught.value.do)
    assert not (tmp_path / "out").exists()


def test_making_again_finds_what_is_there_and_refuses_another(pantry: Path, tmp_path: Path) -> None:
    first, again = (pruned(pantry, tmp_path / "out") for _ in range(2))
    assert again == first._replace(done_before=True)
    with pytest.raises(BadRequest, match="holds another student") as refused:
        pruned(pantry, tmp_path / "out", by="random")
    # of all that was asked for, what differs alone
    assert (refused.value.found, refused.value.expected) == ("options.by = magnitude", "options.by = random")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(BadRequest, match="holds something else"):
        pruned(pantry, tmp_path / "full")


def test_what_was_made_before_is_not_there_without_its_weights(pantry: Path, tmp_path: Path) -> None:
    pruned(pantry, tmp_path / "out")
    (tmp_path / "out/student.safetensors").unlink()
    with pytest.raises(BadRequest, match="not what was written") as refused:
        pruned(pantry, tmp_path / "out")
    assert refused.value.do == f"delete {tmp_path / 'out'}, and make it again"


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(pantry: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadRequest, match="cannot be written"):
        pruned(pantry, tmp_path / "file/out")


def test_a_teacher_other_than_that_of_the_cache_is_refused(pantry: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    text = (pantry / "job.toml").read_text().replace("mean = [0.3]", "mean = [0.2]")
    job.write_text(text.replace('"net.', f'"{pantry}/net.').replace('"cache"', f'"{pantry}/cache"'))
    job.write_text(job.read_text().replace('"digits.npz"', f'"{pantry}/digits.npz"'))
    build = read_job(job, CacheJob).request(job, device="cpu")
    with pytest.raises(StaleCache, match="mean"):
        make(MakeRequest(build, "net", "prune", PruneOptions(Target("flops", 0.5), "first", 0), tmp_path / "out"))


def test_lineage_says_of_what_and_how_it_was_made(pantry: Path, tmp_path: Path) -> None:
    made = pruned(pantry, tmp_path / "out", by="taylor").made
    assert (made["way"], made["teacher"], made["options"]["by"]) == ("prune", "net", "taylor")
    assert made["options"]["target"] == {"measure": "flops", "share": 0.5}
    assert len(made["weights"]) == len(made["model"]["weights"]) == 32


def test_a_teacher_that_takes_bytes_is_normalised_as_it_is_fed(pantry: Path) -> None:
    (teacher,) = read_job(pantry / "job.toml", CacheJob).teacher
    fed = teacher.model_copy(update={"mean": None, "std": None, "pixels": "bytes"})
    cache = Cache.open(str(pantry / "cache"))
    # `as_student` itself compares what both say
    subject = as_student(fed, KINDS["factory"].load(fed), cache.dataset("digits"), some_rows(cache, "digits", 40, 0))
    assert subject.blueprint.std == (1 / 255,)


def test_a_teacher_that_gives_probabilities_is_refused(pantry: Path) -> None:
    (teacher,) = read_job(pantry / "job.toml", CacheJob).teacher
    said = teacher.model_copy(update={"output": "probabilities"})
    cache = Cache.open(str(pantry / "cache"))
    with pytest.raises(BadRequest, match="gives probabilities"):
        as_student(said, KINDS["factory"].load(said), cache.dataset("digits"), some_rows(cache, "digits", 40, 0))


def test_batch_norms_of_a_smaller_network_have_the_moments_of_its_own_activations(
    pantry: Path, subject: Subject, tmp_path: Path
) -> None:
    made = pruned(pantry, tmp_path / "out")
    student = load_student(tmp_path / "out", architecture=f"{pantry / 'net.py'}:build")
    norm = student.network.stem[1]
    seen: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        student(subject.blueprint.made_of.arguments(subject.rows.shown_B[:32]))
        student(subject.blueprint.made_of.arguments(subject.rows.shown_B[32:]))
    expected = torch.stack([given.mean((0, 2, 3)) for given in seen]).mean(0)  # over batches of 32 and 8
    torch.testing.assert_close(norm.running_mean, expected)
    assert "batch norms taken again over 40 rows" in "\n".join(made.told)
    assert not student.training
    assert norm.momentum == 0.1


def test_batch_norms_keep_the_teachers_moments_where_one_row_is_all_there_is(
    pantry: Path, subject: Subject, tmp_path: Path
) -> None:
    made = pruned(pantry, tmp_path / "out", rows=1)
    student = load_student(tmp_path / "out", architecture=f"{pantry / 'net.py'}:build")
    theirs = set(subject.student.network.stem[1].running_mean.tolist())
    assert set(student.network.stem[1].running_mean.tolist()) <= theirs  # of the channels that stay, not zeros
    assert "keep the teacher's means" in "\n".join(made.told)
