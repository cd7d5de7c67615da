"""Code that comes with a model's folder (`auto_map` in its config), which runs only where a job trusts it by name.

transformers copies such files to a place under HF_HOME and runs the copies. Here the folder's own files run, from the
bytes that were digested, as a package that is named by their digest: nothing is written, no stale copy ever runs, and
no hub is asked.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import decode_source
from pathlib import Path
from typing import Any

from storage.digests import digest, fingerprint
from storage.errors import BadRequest, MissingSource

CODE_NAME = r"^[A-Za-z_]\w*\.[A-Za-z_]\w*$"
"""A file of the folder, without `.py`, and a class in it; code of a hub (`owner/name--file.Class`) has no such name."""


def named_code(auto_map: Any) -> list[str]:
    """Return the names of code in an `auto_map`: its values, or lists of them."""
    values = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    each = [name for value in values for name in (value if isinstance(value, list) else [value])]
    return sorted({str(name) for name in each if name is not None})


def check_trusted(folder: Path, auto_map: Any, trusted: Sequence[str], wrong: type[BadRequest]) -> None:
    """Check that a job trusts all code that a folder's config names, and that all of it lies in the folder.

    Raises:
        wrong: it names other code, or code of a repository; or the job trusts what it does not name.
        MissingSource: a file is not there.
    """
    named = named_code(auto_map)
    if untrusted := [name for name in named if name not in trusted]:
        elsewhere = [name for name in untrusted if not re.match(CODE_NAME, name)]
        raise wrong(
            f"the model in {folder} wants code that the job does not trust",
            found=", ".join(untrusted),
            expected=f"no other than trust_code: {', '.join(trusted)}",
            do="put the repository's files into the folder, and their names without it into auto_map"
            if elsewhere
            else "read it; where you trust it, name it in trust_code too",
        )
    if unnamed := [name for name in trusted if name not in named]:
        raise wrong(
            f"the model in {folder} has no such code as trust_code names",
            found=", ".join(named) or "no auto_map",
            expected=", ".join(unnamed),
            do="take the name out of trust_code",
        )
    for name in named:
        if not (path := folder / f"{name.partition('.')[0]}.py").is_file():
            raise MissingSource(f"there is no {path}", found=f"{name} in auto_map", expected="its file in the folder")


def code_digests(folder: Path) -> dict[str, str]:
    """Return the digests of a folder's `.py` files, by name: any may import another."""
    return {name: digest(data) for name, data in _files(folder).items()}


def load_class(folder: Path, name: str, wrong: type[BadRequest]) -> type:
    """Return a class of a folder's code, which runs now. Whether it is trusted was checked before (`check_trusted`).

    Args:
        folder: of the model.
        name: the file, without `.py`, and the class.
        wrong: error of whoever asks.

    Raises:
        wrong: the code fails, or has no such class.
    """
    files = _files(folder)
    package = f"trusted_code_{fingerprint({file: digest(data) for file, data in files.items()})}"
    if package not in [finder.package for finder in sys.meta_path if isinstance(finder, _FolderCode)]:
        sys.meta_path.append(_FolderCode(package, folder, files))
    module, _, attribute = name.partition(".")
    try:
        found = getattr(importlib.import_module(f"{package}.{module}"), attribute)
    except (Exception, SystemExit) as error:  # whatever another's code raises
        raise wrong(
            f"the code of {name} in {folder} cannot be imported",
            found=f"{type(error).__name__}: {error}".replace(f"{package}.", ""),
            expected="files that import installed packages, and each other as `from .other import …`",
        ) from error
    if not isinstance(found, type):
        raise wrong(f"{name} in {folder} is no class", found=type(found).__name__)
    return found


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.py")) if path.is_file()}


class _FolderCode(MetaPathFinder, ExecutionLoader):
    """Finds and loads the modules of one package from bytes that were read; the package itself is empty."""

    def __init__(self, package: str, folder: Path, files: dict[str, bytes]):
        self.package, self._folder, self._files = package, folder, files

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        package, _, module = fullname.partition(".")
        if package != self.package or (module and f"{module}.py" not in self._files):
            return None
        spec = ModuleSpec(fullname, self, origin=self.get_filename(fullname), is_package=not module)
        spec.has_location = bool(module)  # so that it has a __file__; the package has no folder to find more in
        return spec

    def is_package(self, fullname: str) -> bool:
        return fullname == self.package

    def get_filename(self, fullname: str) -> str:
        return str(self._folder / f"{fullname.partition('.')[2] or '__init__'}.py")

    def get_source(self, fullname: str) -> str:
        return "" if self.is_package(fullname) else decode_source(self._files[Path(self.get_filename(fullname)).name])
