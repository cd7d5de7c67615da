"""Which files a folder of Hugging Face has for a split: one that `save_to_disk` wrote, or a repository in Parquet.

folder/dataset_dict.json, folder/train/state.json …          DatasetDict.save_to_disk: a folder for each split
folder/state.json, folder/data-00000-of-00002.arrow …        Dataset.save_to_disk: one split
folder/data/train-00000-of-00002.parquet …                   a data set's repository on the Hub
folder/train/0000.parquet …                                  the same, converted by the Hub
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from storage.datasets.arrow import OF_SPLIT, SPLITS, STATE
from storage.datasets.listing import list_files, told
from storage.errors import MissingSource

ABOUT = frozenset({SPLITS, STATE, "dataset_info.json", "README.md"})
PARQUET = ".parquet"
MOST_NAME_BYTES = 255  # of what nearly all disks take
NUMBERED = re.compile(r"\d{4,5}")  # how the Hub calls files that it converted, in a folder of their split


class SavedSplit(NamedTuple):
    """The files of one split.

    Attributes:
        root: the folder that they are named from.
        files: in order.
        passed_over: what else lies there, in words; None: nothing.
    """

    root: Path
    files: tuple[Path, ...]
    passed_over: str | None


def find_split(path: Path, split: str | None) -> SavedSplit:
    """Return the files of a split.

    Args:
        path: of the folder.
        split: its name; None: there is but one.

    Raises:
        MissingSource: it is no such folder; or has no such split, or several.
    """
    if not path.is_dir():
        raise MissingSource(
            f"{path} is not a folder" if path.exists() else f"there is no {path}",
            expected="a folder that save_to_disk wrote, or a data set's repository in Parquet",
            do=f'path = "{path.parent.name}"    # the folder, not a file of it' if path.exists() else None,
        )
    if (path / SPLITS).is_file():
        names = _list(path / SPLITS, _json(path / SPLITS), "splits")
        return _of_state(path / _chosen(path, names, split))
    if (path / STATE).is_file():
        own = _json(path / STATE).get("_split")
        if split not in (None, own):
            raise MissingSource(
                f"{path} is one split, not several",
                found=f'split = "{split}" in the job, and {path.name} is {own or "of no name"}',
                do="leave `split` out; or name the folder that has dataset_dict.json",
            )
        return _of_state(path)
    return _of_repository(path, split)


def _chosen(path: Path, names: Sequence[str], split: str | None) -> str:
    """Return the split that is asked for. Raises MissingSource, with all that there are."""
    if split is None and len(names) == 1:
        return names[0]
    if split not in names:
        raise MissingSource(
            f"{path} has {'no' if split else 'several'} split{f' {split}' if split else 's'}",
            found=", ".join(names) or "none",
            expected="one of them, by name",
            do=f'split = "{names[0]}" in [[dataset]]; or name its own folder, {path.name}/{names[0]}'
            if names
            else "save it again",
        )
    return str(split)


def _of_state(folder: Path) -> SavedSplit:
    """Return the files that a folder of one split says it has. Raises MissingSource: one is gone."""
    state = _json(folder / STATE)
    if any(state.get(key) for key in ("_indices_data_files", "_indices_files")):
        raise MissingSource(
            f"{folder} is a selection of the rows of its files",
            found="indices, as an early version of `datasets` saved them",
            do="load_from_disk, flatten_indices, save_to_disk into another folder",
        )
    named = state.get("_data_files")
    listed = named if isinstance(named, list) else [None]
    entries = [entry.get("filename") if isinstance(entry, dict) else None for entry in listed]
    if not all(map(_is_name, entries)):
        raise MissingSource(
            f"{folder / STATE} does not say which files there are",
            found=f"_data_files {str(named)[:200]}",
            expected='[{"filename": "data-00000-of-00001.arrow"}, …], of this folder',
        )
    files = tuple(folder / str(name) for name in entries)
    if not files:
        raise MissingSource(f"{folder} has no rows", found=f"no file in its {STATE}", expected="one sample at least")
    if gone := [file.name for file in files if not file.is_file()]:
        raise MissingSource(
            f"{folder} lacks files that its {STATE} names",
            found=f"{len(gone)} of {len(files)} gone: {', '.join(gone[:5])}",
            expected="all of them: rows would be missing",
            do="copy the whole folder",
        )
    beside = [entry.name for entry in folder.iterdir() if entry.name not in {*ABOUT, *entries}]
    kinds = Counter(f"*{Path(name).suffix}" if Path(name).suffix else name for name in sorted(beside))
    return SavedSplit(folder, files, told(kinds))


def _of_repository(path: Path, split: str | None) -> SavedSplit:
    """Return the Parquet files of a split. Raises MissingSource: there are none, or of several configurations."""
    listing = list_files(path, (PARQUET,))
    found: dict[str, list[Path]] = {}
    strange = []
    for file in listing.files:
        matched = OF_SPLIT.fullmatch(file.stem)
        if matched is not None:
            found.setdefault(matched["split"], []).append(file)
        elif NUMBERED.fullmatch(file.stem) and file.parent != path:
            found.setdefault(file.parent.name, []).append(file)
        else:
            strange.append(file)
    if not listing.files or strange:
        names = [file.relative_to(path).as_posix() for file in strange]
        raise MissingSource(
            f"{path} is no folder of `datasets`",
            found=", ".join(names[:5]) or told(listing.passed_over) or "an empty folder",
            expected=f"{STATE} or {SPLITS}, as save_to_disk writes them; or Parquet named after its split, such as "
            "data/train-00000-of-00002.parquet",
            do='kind = "parquet_images", or kind = "text", takes Parquet under any name'
            if strange
            else 'load_dataset(…).save_to_disk(FOLDER); pictures in folders are kind = "image_folder"',
        )
    files = found[_chosen(path, sorted(found), split)]
    if len(folders := sorted({file.parent.relative_to(path).as_posix() for file in files})) > 1:
        raise MissingSource(
            f"{path} has that split in several folders, which are other data sets each",
            found=", ".join(folders),
            expected="one configuration",
            do=f'path = "{path.name}/{folders[0].removesuffix(f"/{split}")}"',
        )
    _check_whole(path, files)
    return SavedSplit(path, tuple(files), told(listing.passed_over - Counter({"*.md": 1})))


def _check_whole(path: Path, files: Sequence[Path]) -> None:
    """Raise MissingSource if files of a split, which their names count, are not all there, or are of two writings."""
    of_names = [OF_SPLIT.fullmatch(file.stem) for file in files]
    alls = sorted({int(named["all"]) for named in of_names if named is not None})
    numbers = Counter(
        int(file.stem if named is None else named["number"]) for file, named in zip(files, of_names, strict=True)
    )
    count = alls[0] if alls else max(numbers) + 1
    found = None
    if len(alls) > 1:
        found = f"files {', '.join(f'of {all_of}' for all_of in alls)}, as of data that were written twice"
    elif twice := sorted(number for number in numbers if numbers[number] > 1):
        found = f"two files of number {twice[0]}: {', '.join(file.name for file in files[:4])}"
    elif gone := sorted({*range(count)} - numbers.keys()):
        first, named = files[0].name, of_names[0]
        width, at = (len(files[0].stem), 0) if named is None else (5, named.start("number"))
        names = [f"{first[:at]}{number:0{width}d}{first[at + width :]}" for number in gone[:5]]
        found = f"{len(gone)} of {count} gone: {', '.join(names)}"
    if found is not None:
        raise MissingSource(
            f"{path} has not the files of its split once each",
            found=found,
            expected="all that their names count: rows would be missing, or there twice",
            do="copy the whole repository, of one revision, into an empty folder; or take what is there by "
            'kind = "parquet_images", or kind = "text"',
        )


def _is_name(value: Any) -> bool:
    """Return whether a value is the name of a file or folder, as any disk takes it, and never a path to elsewhere."""
    if not isinstance(value, str) or "\0" in value or len(value.encode(errors="replace")) > MOST_NAME_BYTES:
        return False
    return Path(value).name == value and value not in ("", "..")


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise MissingSource(f"cannot read {path}", found=str(error), do="save it again") from None
    if not isinstance(found, dict):
        raise MissingSource(f"cannot read {path}", found=type(found).__name__, expected="an object")
    return found


def _list(path: Path, about: dict[str, Any], key: str) -> list[str]:
    names = about.get(key)
    if not isinstance(names, list) or not all(map(_is_name, names)):
        raise MissingSource(f"{path} does not name its {key}", found=str(names)[:200], expected="a list of names")
    return names
