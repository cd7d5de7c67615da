"""What holds the house together: documents that match the code, a wheel with the rooms and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import typing
import zipfile
from pathlib import Path

import pytest
from pydantic import BaseModel

from jobs.cli import cache as cache_cli
from jobs.cli import student as student_cli
from jobs.files.cache_job import CacheJob
from jobs.files.chain_job import ChainJob, TeachingOptions
from jobs.files.pod_options import PodOptions, VolumeOptions
from jobs.files.reading import read_job
from jobs.files.student_job import StudentJob
from storage.datasets import AnySource
from storage.encodings import DenseEncoding, FeatureEncoding, SparseEncoding, VectorEncoding
from storage.views.options import AnyTransform, ViewOptions
from student_train.options.model import LoraOptions, StartOptions
from student_train.options.sections import StudentOptions
from student_train.options.terms import FeatureTerm, SoftTerm, Term, VectorTerm
from teacher_cache.teachers.options import TeacherOptions
from tests import house

REPOSITORY = Path(__file__).resolve().parents[1]
ROOMS = {"storage", "teacher_cache", "student_train", "jobs"}
PAGES = sorted((REPOSITORY / "docs/jobs").glob("*.md"))
KINDS = typing.get_args(typing.get_args(AnySource)[0])
SOURCES = [
    getattr(source, "__origin__", source)
    for kind in KINDS
    for source in (typing.get_args(kind.__origin__) if hasattr(kind, "__origin__") else [kind])  # text is two
]
SECTIONS = [
    CacheJob,
    StudentJob,
    ChainJob,
    TeachingOptions,
    StudentOptions,
    StartOptions,
    LoraOptions,
    TeacherOptions,
    DenseEncoding,
    SparseEncoding,
    VectorEncoding,
    FeatureEncoding,
    *SOURCES,
    ViewOptions,
    PodOptions,
    VolumeOptions,
    *typing.get_args(typing.get_args(AnyTransform)[0]),
    *(term for base in (Term, SoftTerm, FeatureTerm, VectorTerm) for term in base.__subclasses__()),
    *(CacheJob.model_fields[name].annotation for name in ("cluster", "fidelity")),
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_option_of_a_job_file_is_told_in_its_document(section: type[BaseModel]) -> None:
    told = "\n".join(
        re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL) for page in PAGES
    )  # not in examples alone
    code = " ".join(re.findall(r"`([^`\n]+)`", told))
    words = set(re.findall(r"[a-z_]+", code))
    assert set(section.model_fields) - words == set()


@pytest.mark.parametrize("page", [REPOSITORY / "README.md", *PAGES], ids=lambda page: page.stem)
def test_every_example_of_a_job_is_a_valid_job(page: Path, tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert examples or page == REPOSITORY / "docs/jobs/README.md"
    for example in examples:
        (tmp_path / "job.toml").write_text(example)
        kind = ChainJob if example.startswith("job = ") else StudentJob if "[[student]]" in example else CacheJob
        read_job(tmp_path / "job.toml", kind)


def test_every_command_is_told_in_the_readme() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    commands = {
        f"{program} {command.name or command.callback.__name__}"
        for program, app in (("cache", cache_cli.app), ("student", student_cli.app))
        for command in app.registered_commands
        if command.callback is not None
    } | {f"student {group.name}" for group in student_cli.app.registered_groups}
    assert set(re.findall(r"^\| `((?:cache|student) \w+)", readme, flags=re.MULTILINE)) == commands


@pytest.mark.parametrize(
    "document", ["README.md", *(str(p.relative_to(REPOSITORY)) for p in REPOSITORY.glob("docs/**/*.md"))]
)
def test_every_link_of_a_document_leads_somewhere(document: str) -> None:
    path = REPOSITORY / document
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_every_heading_to_which_a_link_leads_is_there() -> None:
    documents = [REPOSITORY / "README.md", *REPOSITORY.glob("docs/**/*.md")]
    headings = {path.resolve(): _anchors(path.read_text()) for path in documents}
    links = [
        (path, (path.parent / to if to else path).resolve(), heading)
        for path in documents
        for to, heading in re.findall(r"\]\(([^)#:]*\.md|)#([^)]+)\)", path.read_text())
    ]
    assert len(links) >= 50
    assert [f"{path}: {to.name}#{heading}" for path, to, heading in links if heading not in headings[to]] == []


def _anchors(text: str) -> set[str]:
    """Return how a page's headings are called in links, as GitHub makes it of them."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_test_that_a_document_names_is_there() -> None:
    documents = [path for path in REPOSITORY.glob("docs/**/*.md") if path.name != "log.md"]  # tells of its own day
    named = [each for path in documents for each in re.findall(r"`(tests/\S+?\.py)::(\w+)", path.read_text())]
    assert len(named) > 50
    assert [f"{path}::{test}" for path, test in named if f"def {test}(" not in (REPOSITORY / path).read_text()] == []


def test_what_holds_an_invariant_is_there() -> None:
    table = (REPOSITORY / "docs/invariants.md").read_text()
    assert re.findall(r"^\| (\d+) \|", table, flags=re.MULTILINE) == [str(number) for number in range(1, 14)]
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", table)
    assert [f"{path}::{test}" for path, test in named if f"def {test}(" not in (REPOSITORY / path).read_text()] == []


def test_what_a_row_is_and_what_is_asked_of_it_is_known_to_the_tables_alone() -> None:
    asking = house.branches_on_kinds()
    assert len(asking) <= 13, asking
    assert [place for place, reason in asking.items() if not reason] == []


def test_what_a_comment_cites_is_there() -> None:
    sources = [path for room in (*house.ROOMS, "tests") for path in (REPOSITORY / room).rglob("*.py")]
    texts = {
        path: path.read_text() for path in [*sources, *REPOSITORY.glob("docs/**/*.md")] if path.name != "test_house.py"
    }
    decisions = {path.name[:4] for path in REPOSITORY.glob("docs/adr/*.md")}
    documents = {path.name for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")]} | {"FORMAT.md"}
    for path, text in texts.items():
        assert set(re.findall(r"docs/adr/(\d{4})", text)) <= decisions, path
        assert set(re.findall(r"\b[A-Z]+\.md\b", text)) <= documents, path
        assert all((REPOSITORY / cited).exists() for cited in re.findall(r"\bdocs/[\w/-]+\.md", text)), path
        assert {int(number) for number in re.findall(r"[Ii]nvariant (\d+)", text)} <= set(range(1, 14)), path


@pytest.mark.slow
def test_the_wheel_holds_the_rooms_and_no_tests(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(REPOSITORY)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == ROOMS | {"stillroom_start.py"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    page = {f"student_train/report/page.{kind}" for kind in ("css", "html.j2", "js")}
    assert {"storage/FORMAT.md", *page} <= set(names)
