"""The page in a real browser: Debian's chromium, without a window."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from student_train.report import write_report
from tests.student_train.browser import Page, browser, chromium
from tests.student_train.report_toys import HOSTILE, all_kinds, hostile_cache

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium is None, reason="there is no chromium here: apt-get install chromium"),
]

NAMES = "[...document.querySelectorAll('table.sortable tbody:first-of-type td:first-child')].map(e => e.dataset.value)"


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
    return window


def head(page: Page, title: str) -> str:
    """Return the selector of a column's head."""
    titles = page.run("[...document.querySelectorAll('table.sortable th')].map(e => e.textContent.trim())")
    return f"table.sortable th:nth-child({titles.index(title) + 1})"


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
    assert any("Content Security Policy" in error for error in window.errors)
