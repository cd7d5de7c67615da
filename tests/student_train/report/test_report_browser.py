"""The page in a real browser: Debian's chromium, without a window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from student_train.report import write_report
from student_train.running.train import train_students
from tests.student_train.browser import Page, browser, chromium
from tests.student_train.report_toys import HOSTILE, all_kinds, hostile_cache
from tests.student_train.toys import KD, LABELS, Recipe, request_of, student, write_cache

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium is None, reason="there is no chromium here: apt-get install chromium"),
]

NAMES = "[...document.querySelectorAll('table.students tbody:first-of-type td:first-child')].map(e => e.dataset.value)"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile <b>&amp; folder")
    return write_report(all_kinds(hostile_cache(folder / "cache"), folder / "runs")).path


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(window: Page, report: Path) -> Page:
    window.errors.clear()
    window.requests.clear()
    window.open(report)
    window.run("document.querySelector('details:has(table.students)').open = true")
    return window


def head(page: Page, title: str) -> str:
    """Return the selector of a column's head."""
    titles = page.run("[...document.querySelectorAll('table.students th')].map(e => e.textContent.trim())")
    return f"table.students th:nth-child({titles.index(title) + 1})"


def values(page: Page, column: str) -> list[float | None]:
    """Return what a column is sorted by, as it stands."""
    cells = column.replace(" th", " tbody:first-of-type td")
    found = page.run(f"[...document.querySelectorAll({cells!r})].map(e => e.dataset.value ?? null)")
    return [None if value is None else float(value) for value in found]


def test_the_page_has_no_script_error_and_breaks_no_policy(page: Page) -> None:
    page.run("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    page.click(f"{head(page, 'accuracy')} button")
    assert page.errors == []


def test_the_page_asks_nothing_of_any_network(page: Page, report: Path) -> None:
    assert page.requests == [report.as_uri()]


def test_every_image_is_seen(page: Page) -> None:
    page.run("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    broken = "[...document.images].filter(i => !i.complete || i.naturalWidth === 0).length"
    assert page.run("document.images.length") > 10
    assert page.run(broken) == 0


def test_nothing_hangs_out_of_a_laptops_screen(page: Page) -> None:
    assert page.run("innerWidth") == 1280
    assert page.run("document.documentElement.scrollWidth") <= 1280


def test_a_sweep_of_eight_settings_and_two_seeds_is_seen_whole(window: Page, tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache", Recipe())
    taught = [
        student(
            f"mlp-learning_rate_{rate}-t_{warm:g}-h_{size}-s_{seed}",
            learning_rate=rate,
            seed=seed,
            options={"hidden": [size]},
            objective=[KD | {"temperature": warm}, LABELS],
            epochs=1,
        )
        for rate in (0.001, 0.01)
        for warm in (1.0, 4.0)
        for size in (4, 16)
        for seed in (0, 1)
    ]
    alone = [student(f"alone-s_{seed}", seed=seed, epochs=2) for seed in (0, 1)]
    train_students(request_of(cache, tmp_path / "runs", *taught, *alone))
    window.open(write_report(tmp_path / "runs").path)
    rows = "[...document.querySelectorAll('table.settings tbody tr')].map(e => e.cells[0].childNodes)"
    names = window.run(f"{rows}.map(e => [...e].filter(n => n.nodeType === 3).map(n => n.textContent).join('').trim())")
    assert sorted(names) == ["alone", "chance", *["mlp"] * 8, "teacher sage"]
    wide = "[...document.querySelectorAll('.scroll, td, th')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert window.run("document.querySelector('details:has(table.students)').open = true")
    assert window.run(wide) == 0
    assert window.run("document.querySelectorAll('#effects').length") == 1
    assert window.run("document.querySelector('.headline').textContent").startswith("Best of 9 settings: ")


def test_a_click_sorts_the_leaderboard_and_another_turns_it_round(page: Page) -> None:
    column = head(page, "loss")
    known = sorted(value for value in values(page, column) if value is not None)
    assert len(known) == 5
    page.click(f"{column} button")
    assert values(page, column) == [*known[::-1], None]
    page.click(f"{column} button")
    assert values(page, column) == [*known, None]
    assert page.run(f"document.querySelector({column!r}).getAttribute('aria-sort')") == "ascending"


def test_what_was_sorted_are_the_same_students(page: Page) -> None:
    before = page.run(NAMES)
    page.click(f"{head(page, 'accuracy')} button")
    assert sorted(page.run(NAMES)) == sorted(before) == ["good", "halted", "labels", "small", "unfinished", "wild"]


def test_names_are_sorted_as_words(page: Page) -> None:
    page.click(f"{head(page, 'student')} button")
    assert page.run(NAMES) == sorted(page.run(NAMES))


def test_hostile_names_are_text(page: Page) -> None:
    assert page.run("document.querySelectorAll('script').length") == 1
    shown = page.run("document.body.textContent")
    for name in HOSTILE[:3]:
        assert name in shown
    assert page.run("document.querySelectorAll('[onerror], [onclick], main script').length") == 0


@pytest.mark.parametrize(
    ("markup", "found"),
    [
        ("<script>nothing.there()</script>", "ReferenceError: nothing is not defined"),
        ("<script>console.error('oh')</script>", "['oh']"),
        ("<script>alert('hello')</script>", "a dialog: hello"),
    ],
)
def test_a_script_error_would_be_seen(window: Page, tmp_path: Path, markup: str, found: str) -> None:
    window.errors.clear()
    (tmp_path / "page.html").write_text(f"<!DOCTYPE html><body>{markup}</body>")
    window.open(tmp_path / "page.html")
    assert any(error.startswith(found) for error in window.errors)


def test_a_request_would_be_seen(window: Page, tmp_path: Path) -> None:
    window.requests.clear()
    (tmp_path / "page.html").write_text("<!DOCTYPE html><img src='http://127.0.0.1:9/x.png'>")
    window.open(tmp_path / "page.html")
    assert "http://127.0.0.1:9/x.png" in window.requests


def test_a_script_that_is_not_the_pages_own_does_not_run(window: Page, report: Path, tmp_path: Path) -> None:
    window.errors.clear()
    broken = report.read_text().replace("</main>", "<script>document.title = 'taken'</script></main>")
    (tmp_path / "page.html").write_text(broken)
    window.open(tmp_path / "page.html")
    assert window.run("document.title") != "taken"
    assert "Content Security Policy" in "\n".join(window.errors)
