from __future__ import annotations

import base64
import html
import json
import re
import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from storage.cache import Cache
from storage.digests import digest
from storage.encodings import SparseEncoding
from storage.errors import BadRequest, CorruptObject, MissingSource, NotInCache, StaleCache
from storage.format.sealed import read_json
from student_train.comparing.runs import objective_text
from student_train.report import REPORT_FILE, Written, write_report
from student_train.report.caches import cache_facts
from student_train.report.contents import Contents, gather
from student_train.report.gallery import picture_of, visible
from student_train.run_files.history import METRICS_FILE
from student_train.run_files.predictions import read_predictions, write_predictions
from student_train.run_files.predictions_file import PREDICTIONS_FILE
from student_train.run_files.records import RUN_FILE, read_record, write_record
from student_train.running.train import train_students
from student_train.tasks import TASKS
from tests.language.test_build import HELD, TEXT, VERSE
from tests.language.toys import counting_cache, counting_teacher, request, small_gpt
from tests.student_train.report_toys import HOSTILE, REASON, all_kinds, hostile_cache
from tests.student_train.toys import KD, Recipe, request_of, student, write_cache
from tests.teacher_cache.toys import build, write_job

SECTIONS = ["leaderboard", "curves", "cache", "jobs"]  # that every page has, in this order


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return hostile_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def finished(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of runs of every kind; a test copies it before it changes anything."""
    return all_kinds(cache, tmp_path_factory.mktemp("finished") / "runs")


@pytest.fixture(scope="module")
def page(finished: Path) -> str:
    return write_report(finished).path.read_text()


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the runs, for a test to damage."""
    return shutil.copytree(finished, tmp_path / "runs")


def text_of(page: str) -> str:
    """Return what a reader sees: no tags, entities resolved."""
    body = re.sub(r"<(script|style)[^>]*>.*?</\1>", "", page[page.index("<body") :], flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]*>", " ", body))


def sections_of(page: str) -> list[str]:
    return re.findall(r'<h2 id="([a-z-]+)"', page)


def edit_record(folder: Path, **changes: object) -> None:
    record = read_record(folder)
    assert record is not None
    write_record(folder, record.model_copy(update=changes))


def test_the_page_has_every_section(page: str) -> None:
    sections = sections_of(page)
    assert sections == [*SECTIONS[:2], "trade-offs", "classes", "calibration", "agreement", "failures", *SECTIONS[-2:]]
    assert re.findall(r'href="#([a-z-]+)"', page) == sections


def test_every_student_is_in_the_leaderboard_with_its_figures(page: str, finished: Path) -> None:
    settings, students = page.split('<table class="sortable students">')
    # `halted`, `labels` and `unfinished` are of one job
    assert re.findall(r'<td class="name" data-value="([a-z0-9 ]+)"', settings) == [
        "good",
        "halted and 2 more",
        "small",
        "wild",
    ]
    names = re.findall(r'<td class="name" data-value="([a-z]+)"', students)
    assert sorted(names) == ["good", "halted", "labels", "small", "unfinished", "wild"]
    record = read_record(finished / "small")
    assert record is not None
    assert f'data-value="{record.accuracy}"' in page
    assert f'data-value="{record.latency_ms}"' in page


def test_whoever_is_not_finished_is_there_with_the_reason(page: str) -> None:
    text = text_of(page)
    assert "DivergedLoss: student wild diverged in epoch 2" in text
    assert REASON in text
    assert "interrupted after 1 epoch; the same job goes on from there" in text


def test_names_of_classes_are_text_and_no_markup(page: str) -> None:
    text = text_of(page)
    assert [name for name in (*HOSTILE[:3], REASON) if name not in text] == []
    assert [name for name in (*HOSTILE[:2], REASON) if name in page] == []
    assert page.count("<script") == 1


def test_the_page_names_nothing_outside_of_itself(page: str) -> None:
    links = re.findall(r'(?:src|href|action|data)="([^"]*)"', page)
    assert {link.partition(":")[0] for link in links if not link.startswith("#")} == {"data"}
    style, script = (re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)[0] for tag in ("style", "script"))
    assert "url(" not in style
    assert "fetch" not in script


def test_the_same_runs_make_the_same_page(finished: Path, page: str, tmp_path: Path) -> None:
    assert write_report(finished, tmp_path / "again.html").path.read_text() == page


def test_a_student_that_was_trained_without_a_teacher_is_compared_with_it_too(finished: Path) -> None:
    contents = gather(finished)
    assert contents.comparison is not None
    assert set(contents.comparison.agreements) == {"good", "halted", "labels", "small"}
    assert read_predictions(finished / "labels").teacher is None


def test_the_pictures_of_failures_are_the_rows_themselves(finished: Path, cache: Cache) -> None:
    (gallery,) = gather(finished).galleries
    assert gallery.title.startswith("small: ")
    card = gallery.cards[0]
    row = int(card.sample_id.removeprefix("toy-"))
    png = base64.b64decode(card.picture.partition(",")[2])
    assert np.array(Image.open(BytesIO(png))).tolist() == cache.read_inputs("toy", row // 50)[row % 50, 0].tolist()
    assert card.teacher == card.label != card.student


def test_the_job_of_each_student_is_on_the_page(page: str, finished: Path) -> None:
    assert (finished / "good/job.toml").read_text() in text_of(page)


def test_a_run_without_a_job_file_shows_its_options(runs: Path) -> None:
    (runs / "good/job.toml").unlink()
    assert "objective = kd:sage T=2" in text_of(write_report(runs).path.read_text())


def test_students_that_left_no_predictions_are_named(runs: Path) -> None:
    (runs / "labels" / PREDICTIONS_FILE).unlink()
    contents = gather(runs)
    told = "in the leaderboard and the curves only, for they left no predictions: labels"
    assert contents.notices == [told]
    assert contents.comparison.num_students == 3


def test_without_any_predictions_there_is_still_a_page(runs: Path) -> None:
    for path in runs.glob(f"*/{PREDICTIONS_FILE}"):
        path.unlink()
    written = write_report(runs)
    page = written.path.read_text()
    assert sections_of(page) == [*SECTIONS[:2], "trade-offs", *SECTIONS[-2:]]
    assert written.notices == ("no student left predictions: classes, calibration and failures are left out",)
    assert written.exit_code == 0


@pytest.mark.parametrize("name", [PREDICTIONS_FILE, RUN_FILE, METRICS_FILE])
def test_a_damaged_file_is_told_and_the_rest_is_shown(runs: Path, name: str) -> None:
    (runs / "good" / name).write_bytes(b"PAR1 nothing")
    written = write_report(runs)
    assert written.exit_code == CorruptObject.exit_code
    assert any(notice.startswith("good: ") and name in notice for notice in written.notices)
    assert written.students == 6
    assert 'href="#failures"' in written.path.read_text()


def record_predictions(folder: Path) -> None:
    """Let a run's record say that the predictions which are there are its own."""
    record = read_record(folder)
    assert record is not None
    said = digest((folder / PREDICTIONS_FILE).read_bytes())
    write_record(folder, record.model_copy(update={"predictions_digest": said}))


def test_predictions_of_other_rows_are_not_compared(runs: Path, tmp_path: Path) -> None:
    other = write_cache(tmp_path / "other", Recipe(rows=250))
    train_students(request_of(other, tmp_path / "others", student("good", objective=[KD])))
    shutil.copy(tmp_path / "others/good" / PREDICTIONS_FILE, runs / "labels" / PREDICTIONS_FILE)
    record_predictions(runs / "labels")
    written = write_report(runs)
    assert "labels: its predictions are of other rows" in written.notices
    assert written.exit_code == CorruptObject.exit_code


def test_a_teacher_near_chance_is_told_at_the_top(runs: Path) -> None:
    for folder in runs.iterdir():
        if (predictions := read_predictions(folder)) is not None and predictions.teacher is not None:
            wrong = predictions.table.with_columns(teacher_top=(pl.col("label") + 1) % 4)
            write_predictions(folder, replace(predictions, table=wrong))
            record_predictions(folder)
    text = " ".join(text_of(write_report(runs).path.read_text()).split())
    before, _, after = text.partition("Near chance")
    assert after.startswith(" teacher sage: accuracy 0.0% of 48 labelled rows; chance 25.0%, the commonest class ")
    assert "Leaderboard" not in before


def test_the_page_begins_with_who_is_best_and_beside_whom(page: str) -> None:
    top = " ".join(text_of(page).partition("Every student")[0].split())
    assert "6 students, 3 finished, 1 stopped, 1 failed, 1 unfinished. " in top
    assert "4 settings measured on toy/validation, 48 held rows." in top
    assert "Best of 4 settings: good: accuracy " in top
    assert "Teacher sage: " in top
    assert "labels alone" in top
    assert "there is one seed each, so that the noise of seeds is not in it" in top
    assert " chance " in top


def test_classes_are_in_an_order_that_is_told(page: str) -> None:
    told = "All 4 classes, those first where good is furthest behind its teacher."
    assert told in " ".join(text_of(page).split())


def test_runs_of_another_cache_are_shown_and_not_compared(runs: Path, tmp_path: Path) -> None:
    other = write_cache(tmp_path / "other", Recipe(rows=120))
    train_students(request_of(other, runs, student("stranger", objective=[KD])))
    contents = gather(runs)
    assert "stranger" in [run.name for run in contents.runs]
    assert "stranger" not in [run.name for run in contents.main]
    assert contents.notices[0].startswith("measured on other rows than the 6 of this page, with a table of their own")
    assert contents.notices[0].endswith(": stranger")
    assert len(contents.caches) == 2


def test_without_the_cache_there_is_a_page_with_numbers_of_classes(runs: Path, tmp_path: Path) -> None:
    for folder in runs.iterdir():
        if (folder / RUN_FILE).exists():
            edit_record(folder, cache=str(tmp_path / "gone"))
    written = write_report(runs)
    text = text_of(written.path.read_text())
    assert "the cache cannot be opened" in "\n".join(written.notices)
    assert HOSTILE[0] not in text
    assert "toy-" in text  # samples are named all the same
    assert written.exit_code == 0


def test_a_record_that_does_not_say_where_its_cache_is_asks_for_it(runs: Path, cache: Cache) -> None:
    for folder in runs.iterdir():
        if (folder / RUN_FILE).exists():
            edit_record(folder, cache=None)
    assert any("give --cache URL" in notice for notice in gather(runs).notices)
    assert gather(runs, cache.url).notices == []


def test_another_cache_in_its_place_is_not_taken_for_it(runs: Path, tmp_path: Path) -> None:
    other = write_cache(tmp_path / "other", Recipe())
    for folder in runs.iterdir():
        if (folder / RUN_FILE).exists():
            edit_record(folder, cache=other.url)
    contents = gather(runs)
    assert contents.caches == []
    assert "is not the cache of these runs" in "\n".join(contents.notices)
    with pytest.raises(StaleCache):
        gather(runs, other.url)
    with pytest.raises(NotInCache):
        gather(runs, str(tmp_path / "nowhere"))


def test_a_cache_with_a_damaged_shard_costs_its_images_only(runs: Path, tmp_path: Path, cache: Cache) -> None:
    copy = shutil.copytree(cache.url, tmp_path / "copy")
    for path in copy.glob("toy/ingest/*.zarr.zip"):
        path.write_bytes(b"damaged")
    contents = gather(runs, str(copy))
    assert contents.galleries[0].cards[0].picture is None
    assert contents.galleries[0].cards[0].label in HOSTILE
    assert any(notice.startswith("some images are not shown") for notice in contents.notices)


def test_an_old_record_is_still_read(runs: Path) -> None:
    path = runs / "good" / RUN_FILE
    old = read_json(path) | {"format_version": 1}
    for name in ("latency_ms", "inference_rows_per_s", "cache", "halving"):
        del old[name]
    path.write_text(json.dumps(old))
    assert write_report(runs).exit_code == 0


@pytest.mark.parametrize("identity", [{}, {"student": 3, "data": [], "cache": None}, {"student": {"objective": 7}}])
def test_a_record_of_another_make_is_shown_as_far_as_it_goes(runs: Path, identity: dict[str, object]) -> None:
    edit_record(runs / "good", identity=identity)
    assert write_report(runs).students == 6


def test_a_folder_whose_name_could_be_a_pattern_is_itself(runs: Path, tmp_path: Path, page: str) -> None:
    bracketed = shutil.copytree(runs, tmp_path / "set[1]/x*")
    (shutil.copytree(runs, tmp_path / "set1/xy") / "good" / METRICS_FILE).write_bytes(b"of others")
    written = write_report(bracketed)
    assert (written.path, written.students, written.exit_code) == (bracketed / REPORT_FILE, 6, 0)
    assert sections_of(written.path.read_text()) == sections_of(page)


def test_a_folder_with_a_hostile_name_is_text(runs: Path) -> None:
    name = "<img src=x onerror=alert(1)> $x_{$"
    (runs / "wild").rename(runs / name)
    page = write_report(runs).path.read_text()
    assert name not in page
    assert name in text_of(page)


def test_no_name_on_the_page_steers_a_terminal(runs: Path) -> None:
    (runs / "wild").rename(runs / "w\x1b[31m\u202eild")
    page = write_report(runs).path.read_text()
    assert not {"\x1b", "\u202e"} & set(page)
    assert "[31m" in page


def test_unlabelled_rows_are_compared_by_agreement(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", Recipe(unlabelled=frozenset(range(240))))
    train_students(request_of(cache, tmp_path / "runs", student("a", objective=[KD])))
    contents = gather(tmp_path / "runs")
    assert contents.gain.column == "agreement"
    assert contents.classes == contents.galleries == []
    page = write_report(tmp_path / "runs").path.read_text()
    assert re.findall(r'<h2 id="([a-z-]+)"', page) == [
        "leaderboard",
        "curves",  # of one size, and with too few rows for tenths, there is nothing else to draw
        "cache",
        "jobs",
    ]


def test_a_folder_where_all_have_failed_is_shown(tmp_path: Path, cache: Cache) -> None:
    train_students(request_of(cache, tmp_path, student("wild", optimizer="sgd", learning_rate=1000.0, epochs=9)))
    written = write_report(tmp_path)
    assert "1 student, 0 finished, 1 failed" in " ".join(text_of(written.path.read_text()).split())
    assert written.exit_code == 0


def test_two_hundred_students_make_a_page_that_can_be_sent(finished: Path, tmp_path: Path) -> None:
    for number in range(200):
        folder = shutil.copytree(finished / "good", tmp_path / f"good-{number:03d}")
        record = read_record(folder)
        assert record is not None
        identity = record.identity | {"student": record.identity["student"] | {"learning_rate": number / 1e4}}
        edit_record(folder, student=folder.name, accuracy=0.9 + number / 2500, identity=identity)
    contents = gather(tmp_path)
    assert list(contents.colours) == [f"good-{number}" for number in (199, 198, 197, 196, 195)]
    assert write_report(tmp_path).size_bytes < 1_500_000


def test_tokens_without_a_tokenizer_are_shown_as_ids(tmp_path: Path) -> None:
    cache = counting_cache(tmp_path, counting_teacher(), rows=40)
    train_students(request(cache, tmp_path / "runs", small_gpt("a"), small_gpt("b", seed=1)))
    contents = gather(tmp_path / "runs")
    assert contents.task.sites == "positions"
    assert len(contents.tokens) == 9
    card = contents.galleries[0].cards[0]
    assert card.context.split()[-1] == str(int(card.label) - 1)
    page = write_report(tmp_path / "runs").path.read_text()
    assert "tokens" in sections_of(page)
    assert "classes" not in sections_of(page)


def test_text_is_decoded_and_the_token_in_question_marked(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text(VERSE)
    (tmp_path / "held.txt").write_text(VERSE[:80])
    assert build(write_job(tmp_path, TEXT, HELD)).exit_code == 0
    cache = Cache.open(str(tmp_path / "cache"))
    options = small_gpt(options={"depth": 1, "width": 8, "heads": 2}, objective=[{"loss": "labels"}])
    train_students(request(cache, tmp_path / "runs", options, train="train", validation="held"))
    predictions = read_predictions(tmp_path / "runs/gpt")
    known = predictions.table.with_columns(teacher_top=pl.col("label"))  # a teacher that knows the text by heart
    from student_train.report.gallery import Shower
    from student_train.report.measures import failures

    cards = Shower(cache, ["held"], TASKS["language_model"].report).cards(failures(known), predictions, 5)
    for card in cards:
        token = card.label.replace("␣", " ").replace("⏎", "\n")
        assert card.context.removeprefix("…") + token in VERSE


def fidelity(written: Contents) -> dict[str, float]:
    (facts,) = written.caches
    answers = facts.teachers[0].figures
    return {each.rows: each.accuracy for each in answers}


def test_the_teachers_figures_are_those_of_the_table(finished: Path, cache: Cache) -> None:
    samples = cache.samples().of("toy", ["sage"])
    for rows, accuracy in fidelity(gather(finished)).items():
        part = samples.filter(pl.col("split") == rows.partition("/")[2])
        assert accuracy == (part["sage_top"] == part["label"]).mean()


def test_a_dense_cache_keeps_every_top_class(finished: Path) -> None:
    (facts,) = gather(finished).caches
    decoded = facts.teachers[0].figures[-1].decoded
    assert decoded is not None
    assert (decoded.top_kept, decoded.outside) == (1.0, {})


def test_the_mass_outside_of_kept_classes_is_measured_at_every_temperature(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, Recipe(encoding=SparseEncoding(k=2, temperatures=[1.0, 4.0])))
    whole = write_cache(tmp_path / "whole", Recipe(logits_dtype="fp32"))
    decoded = cache_facts(cache, ["toy/validation"]).teachers[0].figures[0].decoded
    of_first = pl.col("split") == "validation", pl.col("shard") == 0
    held = whole.samples().of("toy").filter(*of_first)["row"].to_numpy()
    logits = whole.read_targets("toy", "sage", 0)["logits"][held]
    for temperature in (1.0, 4.0):
        p = np.exp(logits / temperature) / np.exp(logits / temperature).sum(1, keepdims=True)
        assert decoded.outside[temperature] == pytest.approx(np.sort(p)[:, :2].sum(1).mean(), rel=5e-3)
    assert decoded.num_targets == len(held)


def test_draws_alone_are_not_decoded(tmp_path: Path) -> None:
    cache = write_cache(tmp_path, Recipe(encoding=SparseEncoding(n=2)))
    answers = cache_facts(cache, ["toy/train", "toy/validation"]).teachers[0].figures
    assert [each.decoded for each in answers] == [None, None]
    assert answers[0].accuracy is not None


def test_a_page_can_be_written_elsewhere(finished: Path, tmp_path: Path) -> None:
    written = write_report(finished, tmp_path / "a/b/page.html")
    assert written == Written(tmp_path / "a/b/page.html", written.path.stat().st_size, 6, (), 0)


def test_a_page_that_cannot_be_written_is_told(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(BadRequest, match=r"folder\.html is a folder"):
        write_report(finished, tmp_path / "folder.html")
    (tmp_path / "file").touch()
    with pytest.raises(BadRequest, match="cannot be written"):
        write_report(finished, tmp_path / "file/page.html")


def test_one_run_is_no_folder_of_runs(finished: Path) -> None:
    with pytest.raises(MissingSource, match="is one run") as refusal:
        write_report(finished / "good")
    assert refusal.value.do == f"name the folder above it: {finished}"


def test_the_page_lies_in_the_folder_of_the_runs_and_is_no_run(runs: Path) -> None:
    assert write_report(runs).path == runs / REPORT_FILE
    assert write_report(runs).students == 6


@pytest.mark.parametrize(
    ("shape", "dtype", "size"),
    [
        ((1, 8, 8), np.uint8, (8, 8)),
        ((3, 5, 9), np.uint8, (9, 5)),
        ((3, 300, 150), np.uint8, (56, 112)),
        ((4, 7), np.float32, (7, 4)),
    ],
)
def test_an_image_keeps_its_shape(shape: tuple[int, ...], dtype: type, size: tuple[int, int]) -> None:
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    picture = picture_of(values)
    assert picture is not None
    assert Image.open(BytesIO(base64.b64decode(picture.partition(",")[2]))).size == size


@pytest.mark.parametrize("shape", [(30,), (5, 8, 8), (2, 3, 4, 5), (1, 0, 8)])
def test_what_is_no_image_has_no_picture(shape: tuple[int, ...]) -> None:
    assert picture_of(np.zeros(shape, np.float32)) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [(" the", "␣the"), ("\n", "⏎"), ("a b ", "a b␣"), ("  ", "␣␣"), ("", "(empty)"), ("\t", "⇥")],
)
def test_what_cannot_be_seen_of_a_token_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_an_objective_is_told_as_a_sum() -> None:
    terms = [
        {"loss": "labels", "weight": 0.1, "smoothing": 0.2},
        {"loss": "kd", "teachers": {"a": 1.0, "b": 3.0}, "weight": 0.9, "temperature": 4.0},
        {"loss": "hint", "teacher": "a", "feature": "f", "student_layer": "network.x"},
    ]
    assert objective_text(terms) == "0.1 labels smoothing=0.2 + 0.9 kd:a+b T=4 + hint:a/f → network.x"
