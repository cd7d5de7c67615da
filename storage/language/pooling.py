"""How the embedding of a text is made of an encoder's hidden states, as its folder or a job says it.

The folder says so where sentence-transformers wrote it (`modules.json`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from storage.errors import BadRequest, MissingSource

MODULES = "modules.json"
Pooling = Literal["mean", "cls", "max", "lasttoken"]
"""How one vector is made of those of all tokens, by the names of sentence-transformers."""

POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


class Pooled(NamedTuple):
    """How embeddings are made of hidden states, and whether each is then scaled to length 1."""

    pooling: Pooling
    normalize: bool


def pooled_as(folder: Path, pooling: Any, normalize: Any, *, wrong: type[BadRequest], where: str) -> Pooled:
    """Return how an embedding is made, as the job says it, else as the folder of sentence-transformers does.

    Args:
        folder: of the model.
        pooling, normalize: what the job says of it; None: nothing.
        wrong: error of whoever asks.
        where: in the job `pooling` is said.

    Raises:
        MissingSource: a file is not there.
        wrong: the folder has a module that is not done here, or nobody says anything that can be understood.
    """
    if not (pooling is None or pooling in POOLINGS) or not (normalize is None or isinstance(normalize, bool)):
        raise wrong(
            f"{where} does not say how an embedding is made",
            found=f"pooling = {pooling!r}, normalize = {normalize!r}",
            expected=f"pooling, one of {', '.join(POOLINGS)}; normalize, true or false",
        )
    if (folder / MODULES).exists():
        modules = read_json(folder / MODULES, wrong)
        kinds = [str(each.get("type")).rpartition(".")[2] for each in modules] if isinstance(modules, list) else []
        within = [str(each.get("path") or "") for each in modules] if kinds else []
        if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or within[0]:
            raise wrong(
                f"the embeddings of {folder} are made in a way that is not done here",
                found=" → ".join(f"{kind} ({path or '.'})" for kind, path in zip(kinds, within, strict=True))
                or "nothing",
                expected="Transformer (.) → Pooling, and perhaps → Normalize",
                do="write a `factory` that returns the whole of it",
            )
        pooling = pooling or _pooling(folder / within[1] / "config.json", wrong, where)
        normalize = len(kinds) > 2 if normalize is None else normalize
    if pooling is None:
        raise wrong(
            f"nobody says how the hidden states of {folder} are pooled",
            found=f"no {MODULES}",
            do=f'pooling = "mean" in {where}, or another of {", ".join(POOLINGS)}',
        )
    return Pooled(pooling, bool(normalize))


def _pooling(path: Path, wrong: type[BadRequest], where: str) -> Pooling:
    config = read_json(path, wrong)
    said = config.get("pooling_mode")  # since version 5; before, one key a way
    named = [said] if isinstance(said, str) else list(said or [])
    older = {f"pooling_mode_{name}": name.partition("_")[0] for name in ("mean_tokens", "cls_token", "max_tokens")}
    older |= {"pooling_mode_lasttoken": "lasttoken", "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len"}
    named += [name for key, name in older.items() if config.get(key) is True]
    if len(named) != 1 or named[0] not in POOLINGS:
        raise wrong(
            f"{path} pools in a way that is not done here",
            found=", ".join(map(str, named)) or "no way",
            expected=f"one of {', '.join(POOLINGS)}",
            do=f"pooling = … in {where}; or write a `factory` that returns the whole of it",
        )
    found: Pooling = named[0]
    return found


def read_json(path: Path, wrong: type[BadRequest]) -> Any:
    """Return what a file of JSON says. Raises MissingSource, or `wrong`: it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise MissingSource(f"there is no {path}", found=error.strerror) from None
    except ValueError as error:
        raise wrong(f"{path} cannot be read", found=str(error)) from None
