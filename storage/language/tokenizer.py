"""Tokenizers as `tokenizer.json` of the `tokenizers` library: which one it is, how large, and what it makes of text.

Identity and size are read from the JSON itself, so that a build with nothing to do needs no library.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from storage.digests import fingerprint
from storage.errors import BadRequest, MissingSource, missing_extra

# What decides which ids a text becomes. The rest (decoder, template of special tokens, truncation, padding) is not used
# here, and differs between files that are otherwise one tokenizer.
MEANING = ("added_tokens", "normalizer", "pre_tokenizer", "model")
TEXTS_AT_ONCE = 1024  # the library's encodings hold far more than ids, and go batch by batch
MAX_VOCABULARY = 2**24  # a damaged id must not ask for a student of 4 billion classes


@dataclass(frozen=True)
class TokenizerFile:
    """The content of a `tokenizer.json`.

    Attributes:
        data: its bytes.
        fingerprint: of what it does; spelling and unused parts of the file do not count.
        ids: token → id, added tokens too.
        specials: tokens that text is not to be taken for, unless it is asked for.
    """

    data: bytes
    fingerprint: str
    ids: dict[str, int]
    specials: tuple[str, ...] = ()

    @property
    def vocabulary(self) -> int:
        """The number of ids, gaps counted: the largest and one."""
        return max(self.ids.values()) + 1

    def special(self, token: str) -> int:
        """Return the id of a token by name. Raises BadRequest."""
        if token not in self.ids:
            near = [name for name in self.ids if name.startswith(("<", "["))][:8]
            raise BadRequest(
                f"the tokenizer has no token {token!r}",
                found=", ".join(near) or f"{len(self.ids)} tokens",
                do="name its own in the job: end_of_text = …",
            )
        return self.ids[token]


def read_tokenizer(path: Path) -> TokenizerFile:
    """Return a tokenizer file, or that of a model's folder. Raises MissingSource: it is not there, or is none."""
    if path.is_dir():
        folder, path = path, path / "tokenizer.json"
        if not path.exists():
            raise MissingSource(
                f"{folder} holds no tokenizer.json",
                found=", ".join(sorted(each.name for each in folder.iterdir())[:8]) or "an empty folder",
                expected="a tokenizer as `tokenizers` and Transformers' fast tokenizers save it",
                do=f'AutoTokenizer.from_pretrained("{folder}").save_pretrained("{folder}") writes one, of transformers',
            )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MissingSource(
            f"there is no {path}", found=error.strerror, do="paths in a job file are relative to its own folder"
        ) from None
    return parse_tokenizer(data, str(path))


@lru_cache(maxsize=4)
def parse_tokenizer(data: bytes, name: str) -> TokenizerFile:
    """Return the tokenizer in some bytes; `name` is for messages. Raises MissingSource."""
    try:
        value = json.loads(data)
        vocabulary = value["model"]["vocab"]
        # of Unigram, rows of (token, score) in the order of ids
        tokens = vocabulary if isinstance(vocabulary, dict) else {row[0]: i for i, row in enumerate(vocabulary)}
        added = value.get("added_tokens") or []
        ids = tokens | {token["content"]: token["id"] for token in added}
        if not ids or not all(isinstance(i, int) and 0 <= i < MAX_VOCABULARY for i in ids.values()):
            raise ValueError("no ids, or ids that are no numbers from 0 up")
        specials = tuple(token["content"] for token in added if token.get("special") and token["content"])
        return TokenizerFile(data, fingerprint(_meaning(value)), ids, specials)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise MissingSource(
            f"{name} is not a tokenizer.json",
            found=f"{type(error).__name__}: {error}"[:200],
            expected="what `tokenizers` and Transformers' fast tokenizers save",
        ) from None


def _meaning(value: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a `tokenizer.json` that decide ids, spelled one way."""
    meaning = {key: value.get(key) for key in MEANING}
    # Older files write a merge as "a b", later ones as ["a", "b"].
    if isinstance(merges := value["model"].get("merges"), list):
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        meaning["model"] = value["model"] | {"merges": pairs}
    return meaning


def difference(one: TokenizerFile, other: TokenizerFile) -> str:
    """Return where two tokenizers that are not the same part: the first id of another token, else by which rules."""
    tokens, others = ({i: token for token, i in tokenizer.ids.items()} for tokenizer in (one, other))
    for i in range(max(one.vocabulary, other.vocabulary)):
        if tokens.get(i) != others.get(i):
            said, said_there = (f"{each[i]!r}" if i in each else "no token" for each in (tokens, others))
            return f"difference at id {i}: {said} instead of {said_there}"
    rules, rules_there = (_meaning(json.loads(tokenizer.data)) for tokenizer in (one, other))
    parts = [key for key in MEANING if rules[key] != rules_there[key]]
    return f"difference: the same tokens, by another {' and '.join(parts)}"


def train_tokenizer(texts: Iterable[str], vocabulary: int, end_of_text: str) -> bytes:
    """Return the `tokenizer.json` of a byte-level BPE learned from texts; the same texts give the same bytes.

    It can spell every text, since each byte is a token. `end_of_text` is token 0.
    """
    _, models, pre_tokenizers, decoders, trainers, tokenizer_class = _library()
    tokenizer = tokenizer_class(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[end_of_text],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # sorted, for the same bytes every time
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    text: str = tokenizer.to_str(pretty=True)
    return (text + "\n").encode()


class Spelled(NamedTuple):
    """A text in tokens.

    Attributes:
        ids: int32 (n,).
        offsets: int32 (n, 2), from which character of the text to which each token is.
    """

    ids: np.ndarray
    offsets: np.ndarray


@lru_cache(maxsize=4)
def encoder(data: bytes, *, parse_special: bool = False) -> Callable[[Sequence[str]], list[np.ndarray]]:
    """Return the function from texts to token ids, int32 (n,) each, of the tokenizer in `data`.

    Text is text: "<|endoftext|>" in a document is spelled out, unless `parse_special`, and no special token is added.

    Raises (encoder): MissingSource: the library does not take the file.
    """
    tokenizer = _encoding(data, parse_special=parse_special)

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        batches = _encoded(tokenizer.encode_batch_fast, texts)
        return [np.array(encoding.ids, np.int32) for encoding in batches]

    return encode


class Around(NamedTuple):
    """What a tokenizer's own template puts before and behind a text: [CLS] and [SEP] of BERT.

    >>> one = Around(np.array([101], np.int32), np.array([102], np.int32))
    >>> one.put(np.array([7, 8, 9], np.int32)).tolist(), one.put(np.array([7, 8, 9], np.int32), 4).tolist()
    ([101, 7, 8, 9, 102], [101, 7, 8, 102])
    """

    before: np.ndarray
    behind: np.ndarray

    @property
    def num_tokens(self) -> int:
        return len(self.before) + len(self.behind)

    def put(self, ids: np.ndarray, length: int | None = None) -> np.ndarray:
        """Return a text's ids between those; of more than `length` together, what is cut off is the text's own."""
        kept = ids if length is None else ids[: max(0, length - self.num_tokens)]
        return np.concatenate([self.before, kept, self.behind])


@lru_cache(maxsize=4)
def around(data: bytes) -> Around:
    """Return what the template in a `tokenizer.json` puts around a text; nothing, if it has none.

    Raises:
        MissingSource: the library does not take the file.
    """
    tokenizer = _load(data)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    encoding = tokenizer.encode("a", add_special_tokens=True)
    ids, added = np.array(encoding.ids, np.int32), np.array(encoding.special_tokens_mask, bool)
    own = np.flatnonzero(~added)
    first, last = (own[0], own[-1] + 1) if len(own) else (len(ids), len(ids))
    return Around(ids[:first], ids[last:])


@lru_cache(maxsize=4)
def spelling(data: bytes, *, parse_special: bool = False) -> Callable[[Sequence[str]], list[Spelled]]:
    """Return the function from texts to tokens and where in it they are; otherwise as `encoder`."""
    tokenizer = _encoding(data, parse_special=parse_special)

    def spell(texts: Sequence[str]) -> list[Spelled]:
        batches = _encoded(tokenizer.encode_batch, texts)  # the fast one knows no offsets
        return [
            Spelled(np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int32).reshape(-1, 2))
            for encoding in batches
        ]

    return spell


def _encoded(encode: Callable[..., Any], texts: Sequence[str]) -> Iterator[Any]:
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        yield from encode(list(texts[start : start + TEXTS_AT_ONCE]), add_special_tokens=False)


def _encoding(data: bytes, *, parse_special: bool) -> Any:
    """Return the library's tokenizer, set so that it makes tokens of all of a text and of nothing else."""
    tokenizer = _load(data)
    tokenizer.no_truncation()  # a file may ask for either, and text would be lost without a word
    tokenizer.no_padding()
    tokenizer.post_processor = None  # it adds special tokens, and may take spaces off the offsets
    tokenizer.encode_special_tokens = not parse_special
    return tokenizer


@lru_cache(maxsize=4)
def decoder(data: bytes) -> Callable[[Sequence[int]], str]:
    """Return the function from token ids to text, special tokens spelled out, of the tokenizer in `data`.

    Raises (decoder): MissingSource: the library does not take the file.
    """
    tokenizer = _load(data)

    def decode(ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    return decode


def token_names(data: bytes) -> dict[int, str]:
    """Return each id's token as the tokenizer in `data` writes it, added ones too; whatever its model is.

    Raises:
        MissingSource: the library does not take the file.
    """
    return {number: token for token, number in _load(data).get_vocab(with_added_tokens=True).items()}


def _load(data: bytes) -> Any:
    tokenizer_class = _library()[-1]
    try:
        return tokenizer_class.from_str(data.decode())
    except Exception as error:  # the library raises Exception itself
        raise MissingSource("the tokenizer cannot be used", found=str(error)[:200]) from None


def _library() -> tuple[Any, ...]:
    try:
        import tokenizers
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise missing_extra("text", str(error), "text") from None
    return tokenizers, models, pre_tokenizers, decoders, trainers, Tokenizer
