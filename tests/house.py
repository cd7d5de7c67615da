"""The house in figures: `python -m tests.house`. What is promised of them, `test_house.py` holds."""

from __future__ import annotations

import ast
import io
import re
import statistics
import sys
import tokenize
from collections.abc import Iterator
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
ROOMS = ("storage", "teacher_cache", "student_train", "jobs")
KINDS = "pixels|tokens|texts|sequences|values|image_classification|text_classification|vector|language_model"
# How code asks what a row is, or what is asked of it, instead of asking the tables `inputs` and `tasks`.
KIND_OF_ROW = re.compile(
    r"\bof_tokens\b|\bvocabulary is (not )?None\b|\b(if|and|or) (not )?[\w.]*vocabulary( |:)(?![<>=])"
    r"|\bndim [!=]= 3\b|dtype [!=]= \"uint8\""
    rf"|[!=]= \"({KINDS})\"|\bin [(\[{{]\"({KINDS})\""
    r"|\b(task|way|made_of|inputs|(inputs|task)_of\([\w.]*\))(\.name)? [!=]= "
    r"|\bisinstance\([\w.]*(task|asked|made_of|inputs)\b"
    r"|\bisinstance\(.*\b(Pixels|Tokens|Texts|Sequences|Values|OneClass\w*|LanguageModel)\b"
)


def modules(room: str, repository: Path = REPOSITORY) -> dict[str, Path]:
    """Return the modules of a room by dotted name."""
    paths = sorted((repository / room).rglob("*.py"))
    return {".".join(path.relative_to(repository).with_suffix("").parts): path for path in paths}


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield every function of a module with its name, methods as `Class.method`; those within functions are not."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            yield from (
                (f"{node.name}.{inner.name}", inner) for inner in node.body if isinstance(inner, ast.FunctionDef)
            )
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node


def branches_on_kinds(repository: Path = REPOSITORY) -> dict[str, str]:
    """Return the lines that ask what a row is, `module:line`, each with its reason: a comment there or just above."""
    found = {}
    for room in ROOMS:
        for module, path in modules(room, repository).items():
            lines = path.read_text().splitlines()
            for number, line in enumerate(lines):
                if KIND_OF_ROW.search(line):
                    above = lines[number - 1].strip()
                    reason = line.partition("  # ")[2] or above.removeprefix("#") * above.startswith("#")
                    found[f"{module}:{number + 1}"] = reason.strip()
    return found


@lru_cache
def imports(room: str, repository: Path = REPOSITORY) -> dict[str, set[str]]:
    """Return which modules of a room each of its modules imports, whenever it does; not those for types alone."""
    known = modules(room, repository)
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        tree = ast.parse(path.read_text())
        only_types = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        found = set()
        for node in ast.walk(tree):
            if id(node) in only_types:
                continue
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    within = f"{node.module}.{alias.name}"
                    found.add(within if within in known else node.module)
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        found = {target if target in known else f"{target}.__init__" for target in found}
        graph[name] = {target for target in found if target in known and target != name}
    return graph


def between_doors(folder: Path, repository: Path = REPOSITORY) -> dict[str, set[str]]:
    """Return which doors of a folder, its modules and folders, import which others."""
    prefix = ".".join(folder.relative_to(repository).parts) + "."
    graph: dict[str, set[str]] = {}
    for name, targets in imports(prefix.split(".")[0], repository).items():
        if name.startswith(prefix):
            own = name.removeprefix(prefix).split(".")[0]
            inside = {target.removeprefix(prefix).split(".")[0] for target in targets if target.startswith(prefix)}
            graph.setdefault(own, set()).update(inside - {own, "__init__"})
    return graph


def floors(graph: dict[str, set[str]]) -> list[str]:
    """Return the longest chain of doors of which each imports the next; a circle's doors raise CycleError."""
    longest: dict[str, list[str]] = {}
    for name in TopologicalSorter(graph).static_order():
        below = max((longest[target] for target in graph.get(name, ())), key=len, default=[])
        longest[name] = [name, *below]
    return max(longest.values(), key=len, default=[])


def doors(folder: Path) -> list[str]:
    """Return the Python files and folders in a folder, but for `__init__.py`."""
    there = [path for path in folder.iterdir() if path.name not in ("__init__.py", "__pycache__")]
    return sorted(path.name for path in there if path.suffix == ".py" or (path.is_dir() and any(path.rglob("*.py"))))


def undocumented(room: str, repository: Path = REPOSITORY) -> list[str]:
    """Return the public functions of a room without a docstring; methods that fulfil an interface are told there."""
    return [
        f"{module}.{name}"
        for module, path in modules(room, repository).items()
        for name, node in functions(path)
        if "." not in name and not name.startswith("_") and ast.get_docstring(node) is None
    ]


def comments(path: Path) -> int:
    """Return the number of comments in a module."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return sum(token.type == tokenize.COMMENT and "noqa" not in token.string for token in tokens)


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def _table(repository: Path) -> Iterator[tuple[str, str]]:
    everything = {name: path for room in ROOMS for name, path in modules(room, repository).items()}
    lengths = {name: _lines(path) for name, path in everything.items()}
    longest = max(lengths, key=lambda name: lengths[name])
    yield (
        "modules",
        f"{len(everything)}, longest {lengths[longest]} ({longest}), median {statistics.median(lengths.values()):.0f}",
    )
    spans = {f"{m}.{n}": (f.end_lineno or 0) - f.lineno + 1 for m, p in everything.items() for n, f in functions(p)}
    yield "longest function", ", ".join(f"{name} {spans[name]}" for name in sorted(spans, key=lambda n: -spans[n])[:3])
    yield "public functions without docstring", str(sum(len(undocumented(room, repository)) for room in ROOMS))
    for room in ROOMS:
        folders = [folder for folder in (repository / room).rglob("*") if folder.is_dir() and list(folder.glob("*.py"))]
        most = max([repository / room, *folders], key=lambda folder: len(doors(folder)))
        yield (
            f"doors of {room}",
            f"{len(doors(repository / room))}; most below: {len(doors(most))} ({most.relative_to(repository)})",
        )
        for folder in (repository / room, *folders):
            try:
                chain = floors(between_doors(folder, repository))
            except CycleError as error:
                chain = [f"circle: {' → '.join(error.args[1])}"]
            if folder == repository / room or len(chain) > 5 or chain[0].startswith("circle"):
                yield f"floors of {folder.relative_to(repository)}", f"{len(chain)}: {' → '.join(chain)}"
    asking = branches_on_kinds(repository)
    files = {place.partition(":")[0] for place in asking}
    yield "lines that ask for the kind of a row", f"{len(asking)} in {len(files)} files"
    total = sum(lengths.values())
    yield "comments in 100 lines", f"{100 * sum(map(comments, everything.values())) / total:.1f}"
    tests = sum(_lines(path) for path in (repository / "tests").rglob("*.py"))
    yield "lines of source; of tests", f"{total}; {tests}"


if __name__ == "__main__":
    for what, figure in _table(Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY):
        sys.stdout.write(f"{what:<40} {figure}\n")
