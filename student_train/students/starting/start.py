"""Weights that a student starts from: taken by name and shape, and told what was taken and what was not.

They may be a safetensors file, a run's folder, or a model's folder. A student of fewer layers takes those that `layers`
names, or the first ones. Nothing is matched by position.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from storage.digests import file_digest
from storage.errors import BadRequest, BadWeights, MissingSource
from storage.language.model_folder import listed, weights_files
from storage.language.tokenizer import difference, parse_tokenizer, read_tokenizer
from student_train.options.model import StartOptions
from student_train.students.build import Student
from student_train.students.files import TOKENIZER_FILE, WEIGHTS_FILE
from student_train.students.remade.int8 import ranges_of
from student_train.students.starting.converted import converted, is_stored_otherwise
from student_train.students.tensors import own_tensors, shared_names

NETWORK = "network."  # before the names of a student's network, in a run's folder too
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")  # of a layer, in a name: the first one, for experts are within it


class Place(NamedTuple):
    """Where a tensor is stored: in a file, or in a folder, for what `converted` finds there."""

    file: Path
    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Started:
    """What a student takes of some weights.

    Attributes:
        path: of the weights.
        taken: tensors of the student, with where each is.
        missing: tensors of the student that are not there, and stay as drawn.
        reshaped: those that are there in another shape, with both, and stay as drawn too.
        unused: tensors that are there and that the student does not have.
    """

    path: Path
    taken: dict[str, Place]
    missing: tuple[str, ...]
    reshaped: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Return whether nothing of the student stays as its seed has drawn it."""
        return not (self.missing or self.reshaped)

    @property
    def told(self) -> str:
        """Return it in words."""
        names = {
            "not there, and drawn": self.missing,
            "of another shape, and drawn": self.reshaped,
            "there and not used": self.unused,
        }
        parts = [f"{len(each)} {what}: {listed([*each])}" for what, each in names.items() if each]
        all_of_it = len(self.taken) + len(self.missing) + len(self.reshaped)
        return "; ".join([f"starts from {self.path}: {len(self.taken)} of {all_of_it} tensors", *parts])


def start_files(path: Path) -> list[Path]:
    """Return the files of weights that a path names.

    Raises:
        MissingSource: there are none.
        BadWeights: they are pickles, or no safetensors.
    """
    if path.is_dir():
        names = [WEIGHTS_FILE] if (path / WEIGHTS_FILE).exists() else weights_files(path)
        return [path / name for name in names]
    if not path.exists():
        raise MissingSource(
            f"there are no weights at {path}",
            found="nothing there",
            expected="a safetensors file, a run's folder, or a model's folder",
            do="paths in a job file are relative to its own folder",
        )
    if path.suffix != ".safetensors":
        raise BadWeights(
            f"{path} is no safetensors file",
            found=f"a {path.suffix or 'nameless'} file; a pickle could execute code",
            expected="a safetensors file, a run's folder, or a model's folder",
            do="safetensors.torch.save_file(model.state_dict(), …)",
        )
    return [path]


def start_digests(path: Path) -> dict[str, str]:
    """Return the digest of each file of weights, by its name. Raises MissingSource."""
    digests = {}
    for file in start_files(path):
        try:
            stat = file.stat()
        except OSError as error:
            raise MissingSource(f"there is no {file}", found=error.strerror) from None
        digests[file.name] = _digest(file, stat.st_mtime_ns, stat.st_size)
    return digests


@lru_cache(maxsize=64)
def _digest(file: Path, changed_ns: int, size: int) -> str:
    return file_digest(file)  # once for all students that start from it


def start_student(student: Student, start: StartOptions, path: Path) -> Started:
    """Give a student the weights that it starts from, and return what it took.

    Raises:
        MissingSource, BadWeights: they are not there, or no safetensors.
        BadRequest: none of them is the student's; or `layers` are not as many as the student has, or not there.
    """
    found = find_start(student, start, path)
    targets = own_tensors(student)
    files: dict[Path, list[tuple[str, str]]] = {}
    for name, place in found.taken.items():
        files.setdefault(place.file, []).append((name, place.name))
    with torch.no_grad():
        for file, names in files.items():
            if file.is_dir():
                read = converted(file, student.network, values=True).tensors
                for name, stored in names:
                    targets[name].copy_(read[stored])
                continue
            with safe_open(file, framework="pt") as opened:
                for name, stored in names:
                    targets[name].copy_(opened.get_tensor(stored))  # into float32, whatever is stored
    return found


def find_start(student: Student, start: StartOptions, path: Path) -> Started:
    """Return what a student would take; reads names and shapes, and little else. Raises as `start_student`."""
    there = _converted(path, student) if is_stored_otherwise(path, student.network) else _stored(path)
    seen = ranges_of(student)  # by what it is given in training; none of them is drawn
    names = [name for name in own_tensors(student) if name.startswith(NETWORK) and name not in seen]
    shapes = {name: tuple(tensor.shape) for name, tensor in student.state_dict().items()}
    aliases: dict[str, list[str]] = {}
    for other, first in shared_names(student).items():
        aliases.setdefault(first, []).append(other)
    layer_of = _layers(path, start.layers, names, there)
    under = _best_prefix(student, names, there, layer_of)
    taken: dict[str, Place] = {}
    missing, reshaped = [], []
    used: set[str] = set()
    for name in names:
        places = [under(layer_of(each.removeprefix(NETWORK))) for each in (name, *aliases.get(name, []))]
        places = [place for place in places if place in there]
        # the head of a model that is not tied is none of a tied student's
        used.update(places[:1], [other for other in places[1:] if _is_same(there[places[0]], there[other])])
        if not places:
            missing.append(name.removeprefix(NETWORK))
        elif there[places[0]].shape != shapes[name]:
            here, stored = shapes[name], there[places[0]].shape
            reshaped.append(f"{name.removeprefix(NETWORK)} {stored} instead of {here}")
        else:
            taken[name] = there[places[0]]
    unused = tuple(name for name in there if name not in used)
    if not taken:
        raise BadRequest(
            f"nothing of {path} is of this student",
            found=listed(reshaped or [*there]) or "no tensors",
            expected=listed([name.removeprefix(NETWORK) for name in names]),
            do="weights of a model like it: they are taken by name and shape",
        )
    return Started(path, taken, tuple(missing), tuple(reshaped), unused)


def check_speaks(path: Path, tokenizer: str | None, file: bytes | None) -> None:
    """Raise BadRequest if weights are of a model of another tokenizer: its ids are other tokens.

    Args:
        path: of the weights; a folder may say which tokenizer it speaks.
        tokenizer: fingerprint of the one that made the rows; None: nobody knows.
        file: its `tokenizer.json`, if it is at hand.
    """
    if tokenizer is None or not (path / TOKENIZER_FILE).exists():
        return
    spoken = read_tokenizer(path)
    if spoken.fingerprint != tokenizer:
        where = "" if file is None else f"; {difference(spoken, parse_tokenizer(file, 'the tokenizer of the cache'))}"
        raise BadRequest(
            f"the weights in {path} are of a model of another tokenizer",
            found=f"tokenizer {spoken.fingerprint}{where}",
            expected=f"tokenizer {tokenizer}, which made the rows",
            do="weights of a model of that tokenizer; or leave `start` out",
        )


def _stored(path: Path) -> dict[str, Place]:
    """Return where each tensor is, by name as in the network."""
    found: dict[str, Place] = {}
    for file in start_files(path):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - no mapping
                    place = Place(file, name, tuple(opened.get_slice(name).get_shape()))
                    if not name.startswith(("normalise.", "scale.")):  # which the student's own section says
                        found[name.removeprefix(NETWORK)] = place
        except SafetensorError as error:
            raise BadWeights(f"{file} is not a safetensors file", found=str(error)) from None
        except FileNotFoundError as error:
            raise MissingSource(f"there is no {file}", found=str(error)) from None
    return found


def _converted(path: Path, student: Student) -> dict[str, Place]:
    """Return the same of a folder whose tensors the library has under other names, by the network's."""
    found = converted(path, student.network, values=False)
    named = {name: Place(path, name, tuple(tensor.shape)) for name, tensor in found.tensors.items()}
    return named | {name: Place(path, name, ()) for name in found.unused if name not in named}


def _is_same(one: Place, other: Place) -> bool:
    """Return whether two stored tensors are equal."""
    if one.shape != other.shape or one.file.is_dir():  # of a folder those that are shared are there once
        return False
    with safe_open(one.file, framework="pt") as first, safe_open(other.file, framework="pt") as second:
        return torch.equal(first.get_tensor(one.name), second.get_tensor(other.name))


def _layers(
    path: Path, layers: Sequence[int] | None, names: Sequence[str], there: Mapping[str, Place]
) -> Callable[[str], str]:
    """Return the function from a name in the student to that of the layer it is taken from. Raises BadRequest."""
    if layers is None:
        return lambda name: name
    own, stored = _numbers([name.removeprefix(NETWORK) for name in names]), _numbers(there)
    if len(own) != len(layers) or not set(layers) <= stored:
        raise BadRequest(
            f"`layers` do not fit the student and {path}",
            found=f"layers = {list(layers)}",
            expected=f"{len(own)} of them, one for each of the student's, from 0 to {max(stored, default=0)}",
            do="options = { num_hidden_layers = … } says how many a student of transformers has",
        )
    taken_from = list(layers)
    return lambda name: NUMBER.sub(lambda found: str(taken_from[int(found[0])]), name, count=1)


def _numbers(names: Sequence[str] | Mapping[str, Place]) -> set[int]:
    return {int(found[0]) for name in names if (found := NUMBER.search(name))}


def _best_prefix(
    student: Student, names: Sequence[str], there: Mapping[str, Place], layer_of: Callable[[str], str]
) -> Callable[[str], str]:
    """Return the function from a name to that in the file: some are of the body alone, without what it is called."""
    base = f"{getattr(student.network, 'base_model_prefix', '')}."
    ways: list[Callable[[str], str]] = [lambda name: name, lambda name: name.removeprefix(base)]
    return max(ways, key=lambda way: sum(way(layer_of(name.removeprefix(NETWORK))) in there for name in names))
