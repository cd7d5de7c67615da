"""Sections of a job file: strict, relative to their file, and the one place that imports a user's code."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from storage.cache import Cache
from storage.errors import BadRequest
from storage.options import Factory, JobPath, Name, Options, Url, code_fingerprint, load_factory, redacted


class Section(Options):
    """Every shared type of field."""

    name: Name = "x"
    rows: int = 1
    weights: JobPath | None = None
    cache: Url = "c"
    factory: Factory = "a:b"


def section(folder: Path | None = None, **fields: Any) -> Section:
    return Section.model_validate(fields, context=None if folder is None else {"folder": folder})


def mistakes(**fields: Any) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        section(**fields)
    return [(".".join(map(str, error["loc"])), error["type"]) for error in caught.value.errors()]


def test_an_unknown_key_is_refused() -> None:
    assert mistakes(nmae="x") == [("nmae", "extra_forbidden")]


@pytest.mark.parametrize("value", ["1", 1.0, True, None])
def test_a_value_of_another_type_is_refused(value: object) -> None:
    assert mistakes(rows=value) == [("rows", "int_type")]


def test_all_mistakes_are_told_at_once() -> None:
    assert len(mistakes(rows="1", nmae="x", factory="nothing")) == 3


def test_a_section_is_frozen() -> None:
    with pytest.raises(ValidationError):
        section().rows = 2  # type: ignore[misc]


# --- names


@pytest.mark.parametrize("name", ["cnn", "a", "resnet-18_v1.5", "7", "x" * 64])
def test_a_name_may_be_a_folder(name: str) -> None:
    assert section(name=name).name == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../x", "a\\b", ".hidden", "-rf", "a b", "é", "a\n", "x" * 65, "a\0"]
)
def test_a_name_that_is_no_plain_folder_is_refused(name: str) -> None:
    assert mistakes(name=name) == [("name", "value_error")]


@pytest.mark.parametrize("name", ["ingest", "plan", "ledger", "cache.json", "Dataset.json"])
def test_a_name_that_a_cache_keeps_for_itself_is_refused(name: str) -> None:
    assert mistakes(name=name) == [("name", "value_error")]


# --- paths


def test_a_relative_path_is_taken_from_the_job_files_folder(tmp_path: Path) -> None:
    assert section(tmp_path / "jobs", weights="../w/a.safetensors").weights == tmp_path / "w" / "a.safetensors"


def test_an_absolute_path_stays(tmp_path: Path) -> None:
    assert section(tmp_path, weights="/data/a").weights == Path("/data/a")


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert section(tmp_path, weights="~/a").weights == Path("/home/me/a")


def test_the_home_of_nobody_is_a_mistake_like_others() -> None:
    assert mistakes(weights="~no-such-user/a") == [("weights", "value_error")]


def test_a_path_that_is_no_text_is_refused() -> None:
    assert mistakes(weights=3) == [("weights", "path_type")]


@pytest.mark.parametrize(
    ("given", "expected"),
    [("s3://bucket/prefix/", "s3://bucket/prefix"), ("/abs/", "/abs"), ("../caches/c10", "{folder}/caches/c10")],
)
def test_a_cache_is_an_address_or_a_folder(tmp_path: Path, given: str, expected: str) -> None:
    assert section(tmp_path / "jobs", cache=given).cache == expected.format(folder=tmp_path)


def test_an_empty_address_is_refused() -> None:
    assert mistakes(cache="") == [("cache", "string_too_short")]


# --- factories


def test_a_factory_in_a_file_is_taken_from_the_job_files_folder(tmp_path: Path) -> None:
    assert section(tmp_path, factory="models/net.py:build").factory == f"{tmp_path}/models/net.py:build"


def test_a_factory_in_a_module_stays() -> None:
    assert section(Path("/jobs"), factory="torchvision.models:resnet18").factory == "torchvision.models:resnet18"


@pytest.mark.parametrize("reference", ["", "module", "module:", ":function", "module:not an identifier", "a.py"])
def test_what_names_no_function_is_refused(reference: str) -> None:
    assert mistakes(factory=reference) == [("factory", "value_error")]


def test_a_factory_is_loaded_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def build(n):\n    return n + 1\n")
    assert load_factory(f"{tmp_path}/net.py:build")(1) == 2


def test_a_factory_is_loaded_from_a_module() -> None:
    assert load_factory("math:sqrt")(9) == 3


def test_a_file_is_imported_once(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("class Net: pass\n")
    assert load_factory(f"{tmp_path}/net.py:Net") is load_factory(f"{tmp_path}/net.py:Net")


def test_files_of_similar_paths_are_different_modules(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.py").write_text("def f(): return 'a/b'\n")
    (tmp_path / "a_b.py").write_text("def f(): return 'a_b'\n")
    assert (load_factory(f"{tmp_path}/a/b.py:f")(), load_factory(f"{tmp_path}/a_b.py:f")()) == ("a/b", "a_b")


def test_a_file_that_fails_to_import_is_not_kept(tmp_path: Path) -> None:
    before = set(sys.modules)
    (tmp_path / "net.py").write_text("x = 1 / 0\n")
    with pytest.raises(BadRequest) as caught:
        load_factory(f"{tmp_path}/net.py:build")
    assert (caught.value.found, set(sys.modules) - before) == ("ZeroDivisionError: division by zero", set())


def test_a_file_that_exits_while_it_is_imported_is_a_bad_request(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("raise SystemExit(0)\n")
    with pytest.raises(BadRequest) as caught:
        load_factory(f"{tmp_path}/net.py:build")
    assert caught.value.found == "SystemExit: 0"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRequest) as caught:
        load_factory(f"{tmp_path}/no.py:build")
    assert (caught.value.what, caught.value.do) == (
        f"there is no file {tmp_path}/no.py",
        "paths in a job file are relative to its own folder",
    )


def test_a_missing_module_is_named() -> None:
    with pytest.raises(BadRequest) as caught:
        load_factory("no_such_module:build")
    assert (caught.value.what, caught.value.expected) == (
        "cannot import no_such_module",
        "a module that defines `build`",
    )


def test_a_missing_function_is_told_with_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def build(): pass\ndef other(): pass\n_x = len\nnumber = 3\n")
    with pytest.raises(BadRequest) as caught:
        load_factory(f"{tmp_path}/net.py:biuld")
    assert (caught.value.what, caught.value.found) == (f"{tmp_path}/net.py has no function `biuld`", "build, other")


BESIDE = (
    "net.py is loaded alone, and only its own code is compared with the cache's: put what it imports from beside it "
    "into it;\nor install its folder as a package (pip install -e): factory = package.module:function"
)


@pytest.mark.parametrize(
    "line", ["import helpers", "from helpers import f", "from .helpers import f", "import helpers.x"]
)
def test_a_file_that_imports_one_beside_it_says_what_to_do(tmp_path: Path, line: str) -> None:
    (tmp_path / "helpers.py").write_text("def f(): pass\n")
    (tmp_path / "net.py").write_text(f"{line}\ndef build(): pass\n")
    with pytest.raises(BadRequest) as caught:
        load_factory(f"{tmp_path}/net.py:build")
    assert caught.value.do == BESIDE
    (tmp_path / "net.py").write_text("import no_such_module\n")
    with pytest.raises(BadRequest) as caught:
        load_factory(f"{tmp_path}/net.py:build")
    assert caught.value.do == "name an installed module, or a file as path/to/file.py:function"


def test_a_file_finds_its_data_and_its_source(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_bytes(b"beside")
    (tmp_path / "net.py").write_text(
        "import inspect, pkgutil\nclass Net: pass\ndef data(): return pkgutil.get_data(__name__, 'data.txt')\n"
        "def source(): return inspect.getsource(Net)\n"
    )
    assert load_factory(f"{tmp_path}/net.py:data")() == b"beside"
    assert load_factory(f"{tmp_path}/net.py:source")() == "class Net: pass\n"


def test_a_class_of_a_file_can_be_pickled_and_is_a_dataclass(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from __future__ import annotations\nimport dataclasses, pickle\n"
        "@dataclasses.dataclass\nclass C:\n    a: int = 3\n"
        "def again(): return pickle.loads(pickle.dumps(C(4))).a\n"
    )
    assert load_factory(f"{tmp_path}/net.py:again")() == 4


# --- code fingerprints


def fingerprint_of(tmp_path: Path, text: str) -> str:
    path = tmp_path / "code.py"
    path.write_text(text, encoding="utf-8")
    return code_fingerprint(f"{path}:f")


def test_comments_and_layout_do_not_change_a_code_fingerprint(tmp_path: Path) -> None:
    assert fingerprint_of(tmp_path, "def f():\n    return  1  # ä\n\n") == fingerprint_of(tmp_path, "def f(): return 1")


def test_code_changes_a_code_fingerprint(tmp_path: Path) -> None:
    assert fingerprint_of(tmp_path, "def f(): return 1") != fingerprint_of(tmp_path, "def f(): return 2")


def test_a_code_fingerprint_imports_nothing(tmp_path: Path) -> None:
    assert len(fingerprint_of(tmp_path, "raise SystemExit(9)\ndef f(): pass")) == 32


@pytest.mark.parametrize(
    "source",
    [
        b"\xef\xbb\xbfdef f(): return 1\n",
        b"# -*- coding: latin-1 -*-\ndef f(): return 1  # \xe9\n",
        b"def f(): return 1\r\n",
    ],
    ids=["a byte-order mark", "a coding", "line ends"],
)
def test_whatever_python_reads_has_a_code_fingerprint(tmp_path: Path, source: bytes) -> None:
    (tmp_path / "net.py").write_bytes(source)
    assert load_factory(f"{tmp_path}/net.py:f")() == 1
    assert code_fingerprint(f"{tmp_path}/net.py:f") == fingerprint_of(tmp_path, "def f(): return 1\n")


def test_a_module_has_a_code_fingerprint() -> None:
    assert code_fingerprint("colorsys:rgb_to_hsv") == code_fingerprint("colorsys:hsv_to_rgb")


@pytest.mark.parametrize("text", ["def f(:", "\0"])
def test_code_that_cannot_be_parsed_is_a_bad_request(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        fingerprint_of(tmp_path, text)
    assert caught.value.what == f"cannot parse the file of {tmp_path}/code.py:f"


@pytest.mark.parametrize("reference", ["no_such_module:f", "no.such.module:f", "sys:f", "/no/such.py:f"])
def test_code_that_cannot_be_found_is_a_bad_request(reference: str) -> None:
    with pytest.raises(BadRequest):
        code_fingerprint(reference)


# --- a process that outlives an edit


def test_a_file_that_was_edited_is_loaded_anew(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def build(): return 1")
    before = load_factory(f"{tmp_path}/net.py:build")
    times = (tmp_path / "net.py").stat()
    (tmp_path / "net.py").write_text("def build(): return 2")  # of the same size, and at the same time
    os.utime(tmp_path / "net.py", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (before(), load_factory(f"{tmp_path}/net.py:build")()) == (1, 2)


def test_a_file_knows_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def where(): return __file__")
    assert load_factory(f"{tmp_path}/net.py:where")() == f"{tmp_path}/net.py"


def test_a_module_that_was_edited_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "edited_module.py").write_text("def build(): return 1")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_factory("edited_module:build")() == 1
    (tmp_path / "edited_module.py").write_text("def build(): return 2")
    with pytest.raises(BadRequest) as caught:
        load_factory("edited_module:build")
    assert caught.value.what == "edited_module has changed since this process imported it"


SECRET = "s3://key:hidden@bucket/prefix?X-Amz-Signature=hidden"


def test_an_address_with_credentials_is_refused_and_they_are_not_told() -> None:
    with pytest.raises(BadRequest) as caught:
        Cache.open(SECRET)
    assert (caught.value.what, "hidden" in str(caught.value)) == ("s3://…@bucket/prefix?… holds credentials", False)


@pytest.mark.parametrize("url", ["abfss://container@account.dfs.core.windows.net/path", "gs://bucket/a@b:c", "a:b@c?d"])
def test_what_is_no_secret_of_an_address_stays(url: str) -> None:
    assert redacted(url) == url
