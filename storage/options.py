"""The base of every section of a job file, and the types that its fields share.

A section lives in the room that uses it; `jobs.files.reading` only puts sections together. All are frozen and strict.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from importlib.abc import ExecutionLoader, ResourceLoader
from importlib.util import decode_source
from pathlib import Path
from types import CodeType
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from storage.digests import digest, fingerprint
from storage.errors import BadRequest

NAME = r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}"
RESERVED = frozenset(  # a cache's own folders and files
    {
        "ingest",
        "plan",
        "ledger",
        "cache.json",
        "dataset.json",
        "index.parquet",
        "notice.json",
        "teacher.json",
        "tokenizer.json",
        "views.json",
        "weights.json",
    }
)


SECRET_NAME = re.compile(
    r"SECRET|TOKEN(?!I[SZ])|PASSWO?R?D|PASSPHRASE|CREDENTIAL|API_?KEY|PRIVATE_?KEY|(?<![A-Z])(KEY|AUTH)(?![A-Z])",
    re.IGNORECASE,
)


class Options(BaseModel):
    """A section of a job file: frozen, strict, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)  # strict: a number in quotes is a mistake


def against_job(path: str, info: ValidationInfo) -> str:
    """Return a path of a job, absolute: relative ones are to the job's folder. Raises ValueError: it is none."""
    folder = (info.context or {}).get("folder")
    try:
        resolved = Path(path).expanduser()
    except RuntimeError as error:  # "~nobody"; pydantic collects ValueError only
        raise ValueError(str(error)) from None
    return str(resolved if folder is None else (Path(folder) / resolved).resolve())


def _path(value: Any, info: ValidationInfo) -> Any:
    return against_job(value, info) if isinstance(value, str) else value


def _url(value: str, info: ValidationInfo) -> str:
    return value.rstrip("/") if "://" in value else against_job(value, info)


def redacted(url: str) -> str:
    """Return an address without what opens it: a password, a signature.

    >>> redacted("s3://key:secret@bucket/prefix?X-Amz-Signature=abc"), redacted("abfss://container@account/path")
    ('s3://…@bucket/prefix?…', 'abfss://container@account/path')
    """
    scheme, found, rest = url.partition("://")
    if not found:
        return url  # a path may hold any of these characters
    place, query, _ = rest.partition("?")
    user, at, behind = place.partition("@")
    return f"{scheme}://{f'…@{behind}' if at and ':' in user else place}{'?…' if query else ''}"


def holds_secret(name: str, value: str) -> bool:
    """Return whether a variable of an environment holds what opens something: by its name, or as an address does.

    >>> holds_secret("AZURE_STORAGE_ACCOUNT_KEY", "x"), holds_secret("PROXY", "http://me:word@proxy:3128")
    (True, True)
    >>> holds_secret("TOKENIZERS_PARALLELISM", "false"), holds_secret("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/token")
    (False, False)
    """
    if name.endswith("_FILE") and value.startswith("/"):  # where one lies
        return False
    return value != "" and (SECRET_NAME.search(name) is not None or redacted(value) != value)


def _without_secrets(value: str) -> str:
    if redacted(value) != value:
        raise ValueError(f"{redacted(value)} holds credentials, which belong into the environment")
    return value


def _factory(value: str, info: ValidationInfo) -> str:
    module, _, function = value.rpartition(":")
    if not module or not function.isidentifier():
        raise ValueError('write "package.module:function" or "path/to/file.py:function"')
    return f"{against_job(module, info)}:{function}" if module.endswith(".py") else value


def is_name(text: str) -> bool:
    """Return whether a text may name a dataset, teacher or view of a cache."""
    # lower: some disks do not tell A from a
    return re.fullmatch(NAME, text) is not None and text.lower() not in RESERVED


def _name(value: str) -> str:
    if re.fullmatch(NAME, value) is None:
        written = re.sub(r"[^A-Za-z0-9_.\-]+", "-", value).lstrip("._-")[:64]
        raise ValueError(
            f"{value!r} is no name; it is a folder too: letters, digits, dots, dashes and underscores, 64 at most, a "
            "letter or a digit first" + (f"; write {written!r}" if written else "")
        )
    if value.lower() in RESERVED:
        raise ValueError(f"a cache keeps the names {', '.join(sorted(RESERVED))} for itself")
    return value


JobPath = Annotated[Path, Field(strict=False), BeforeValidator(_path)]  # not strict: a string is to become a Path
"""A path, relative to the folder of the job file that names it."""

Url = Annotated[str, Field(min_length=1), AfterValidator(_url)]
"""A folder, relative to the job file's, or a URI."""

CacheUrl = Annotated[Url, AfterValidator(_without_secrets)]
"""A folder, relative to the job file's, or an object store's `scheme://bucket/prefix`, without credentials."""

Factory = Annotated[str, AfterValidator(_factory)]
"""`package.module:function`, or `path/to/file.py:function` with the path relative to the job file's folder."""

Name = Annotated[str, AfterValidator(_name)]
"""A name that is also a folder: letters, digits, dots, dashes and underscores, 64 at most, and none of RESERVED."""


def load_factory(reference: Factory) -> Callable[..., Any]:
    """Return the function that a job file names. With folder_code.py this is where code of others is imported.

    Raises:
        BadRequest: no such file, module or function, or importing it failed.
    """
    module_name, _, function = reference.rpartition(":")
    try:
        module = _load_file(module_name) if module_name.endswith(".py") else _import(module_name)
    except BadRequest:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's module raises while it is imported
        raise BadRequest(
            f"cannot import {module_name}",
            found=f"{type(error).__name__}: {error}",
            expected=f"a module that defines `{function}`",
            do=beside(reference, error) or "name an installed module, or a file as path/to/file.py:function",
        ) from error
    if not callable(getattr(module, function, None)):
        there = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise BadRequest(f"{module_name} has no function `{function}`", found=", ".join(there[:12]) or "no functions")
    return getattr(module, function)  # type: ignore[no-any-return]


def beside(reference: Factory, error: BaseException) -> str | None:
    """Return what to do if a user's file fails because it imports another one beside it; None: that is not why."""
    path = Path(reference.rpartition(":")[0])
    if path.suffix != ".py" or not isinstance(error, ImportError):
        return None
    root = (error.name or "").partition(".")[0]
    relative = "relative import" in str(error)
    if not relative and not (root and ((path.parent / f"{root}.py").is_file() or (path.parent / root).is_dir())):
        return None
    return (
        f"{path.name} is loaded alone, and only its own code is compared with the cache's: put what it imports from "
        "beside it into it;\nor install its folder as a package (pip install -e): factory = package.module:function"
    )


def _factory_source(reference: Factory) -> str:
    """Return the text of the file that defines a factory, without importing it."""
    module_name, _, _ = reference.rpartition(":")
    if module_name.endswith(".py"):
        path = Path(module_name)
    else:
        try:
            spec = importlib.util.find_spec(module_name)
        except (Exception, SystemExit):  # finding a.b imports a, which is a user's own code
            spec = None
        if spec is None or spec.origin is None:
            raise BadRequest(
                f"there is no module {module_name}", do="install it, or name a file: path/to/file.py:function"
            )
        path = Path(spec.origin)
    try:
        return decode_source(path.read_bytes())  # as Python reads it: by its own coding, less a byte-order mark
    except (OSError, UnicodeDecodeError, SyntaxError) as error:
        raise BadRequest(
            f"cannot read {path}",
            found=str(error),
            expected=f"the file of {reference}",
            do="mend the path, from the job's folder",
        ) from None


def code_fingerprint(reference: Factory) -> str:
    """Return the fingerprint of a factory's file, blind to comments and layout, not imported. Raises BadRequest."""
    source = _factory_source(reference)
    try:
        return fingerprint(ast.unparse(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise BadRequest(f"cannot parse the file of {reference}", found=str(error)) from None


def _import(module_name: str) -> Any:
    """Import a module that is installed. Raises BadRequest: its file has changed since this process first did."""
    module = importlib.import_module(module_name)
    path = getattr(module, "__file__", None)
    if path is not None and path.endswith(".py"):
        now = digest(Path(path).read_bytes())
        if _imported.setdefault(module_name, now) != now:  # as in a worker that outlives a job
            raise BadRequest(
                f"{module_name} has changed since this process imported it",
                found=f"digest {now}  ({path})",
                expected=f"digest {_imported[module_name]}, which is what runs here",
                do="start the workers again; or name the file itself, path/to/file.py:function, which is loaded anew",
            )
    return module


_imported: dict[str, str] = {}  # module → digest of its file when it was first asked for


class _AsRead(ExecutionLoader, ResourceLoader):
    """Loads a module from source that was read before: neither a later edit nor a cached `.pyc` can take its place."""

    def __init__(self, source: bytes, path: str):
        self._source = source
        self._path = path

    def get_source(self, fullname: str) -> str:
        return decode_source(self._source)

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_data(self, path: str) -> bytes:  # for `pkgutil.get_data`
        return Path(path).read_bytes()

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_source(fullname), self._path)  # tracebacks name the file


def _load_file(path: str) -> Any:
    """Import a file by its path and content, under a name of its own, so that its classes and pickles agree.

    A process that outlives an edit of the file, such as a Dask worker, loads what is there now, beside what was.
    """
    if not Path(path).is_file():
        raise BadRequest(f"there is no file {path}", do="paths in a job file are relative to its own folder")
    source = Path(path).read_bytes()
    name = f"stillroom_user_{digest(path.encode() + source)}"
    if name in sys.modules:
        return sys.modules[name]
    loader = _AsRead(source, path)
    spec = importlib.util.spec_from_loader(name, loader, origin=path)
    assert spec is not None
    spec.has_location = True  # for tracebacks, and for code that asks where it is
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: its classes look their module up by name
    try:
        loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # half a module must not be found again
        raise
    return module
