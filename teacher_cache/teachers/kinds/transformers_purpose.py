"""What a model of transformers is for, by its folder: tokens that follow, classes of a text or an image, embeddings.

Of embeddings the folder says how they are made where sentence-transformers wrote it (`modules.json`), else the job.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from storage.errors import BadTeacher
from storage.language.pooling import MODULES, Pooled, pooled_as, read_json
from storage.language.preprocessing import PREPROCESSOR, Preprocessing, preprocessing_as

if TYPE_CHECKING:
    from torch import nn

    from teacher_cache.teachers.options import TeacherOptions

SENTENCES = "sentence_bert_config.json"
UNNAMED = "LABEL_"  # how transformers calls classes that nobody has named
WIDTHS = ("hidden_size", "d_model", "dim", "n_embd")  # by which configs say how wide hidden states are


class Purpose(NamedTuple):
    """What a model of a folder is for.

    Attributes:
        auto: transformers' own name for the way to load it.
        what: in words.
        ends: how a config's `architectures` says so.
    """

    auto: str
    what: str
    ends: str


CAUSAL = Purpose("AutoModelForCausalLM", "causal language model", "ForCausalLM")
EMBEDDING = Purpose("AutoModel", "encoder", "")
TEXT_CLASSES = Purpose("AutoModelForSequenceClassification", "classifier of texts", "ForSequenceClassification")
IMAGE_CLASSES = Purpose("AutoModelForImageClassification", "classifier of images", "ForImageClassification")


def purpose_of(folder: Path, config: dict[str, Any], pooling: str | None) -> Purpose:
    """Return what a model is for: a causal language model, if nothing says another thing."""
    if pooling is not None or (folder / MODULES).exists():
        return EMBEDDING
    named = [name for name in config.get("architectures") or [] if isinstance(name, str)]
    return next(
        (each for each in (TEXT_CLASSES, IMAGE_CLASSES) if any(name.endswith(each.ends) for name in named)), CAUSAL
    )


def class_names(config: dict[str, Any]) -> list[str] | None:
    """Return the names of a classifier's classes in the order of its scores; None: nobody has named them.

    >>> class_names({"id2label": {"1": "dog", "0": "cat"}}), class_names({"id2label": {"0": "LABEL_0"}})
    (['cat', 'dog'], None)
    """
    named = config.get("id2label")
    try:
        names = {int(number): str(name) for number, name in named.items()} if isinstance(named, dict) else {}
    except ValueError:
        return None
    if sorted(names) != [*range(len(names))] or all(name == f"{UNNAMED}{number}" for number, name in names.items()):
        return None
    return [names[number] for number in range(len(names))]


def width_of(config: dict[str, Any]) -> int | None:
    """Return how wide a model's hidden states are; None: its config does not say it by a name that is known here."""
    inner = config.get("text_config", config)
    found = next((inner[name] for name in WIDTHS if isinstance(inner.get(name), int)), None)
    return found if found is not None and found > 0 else None


def pooled_of(folder: Path, options: TeacherOptions) -> Pooled:
    """Return how an embedding is made. Raises BadTeacher: as `pooled_as`."""
    return pooled_as(folder, options.pooling, options.normalize, wrong=BadTeacher, where="[[teacher]]")


def longest_of(folder: Path) -> int | None:
    """Return how many tokens of a text sentence-transformers reads, which cuts off the rest; None: nobody says it.

    Raises:
        BadTeacher: the file that says it cannot be read.
    """
    found = _of_sentences(folder).get("max_seq_length")
    return found if isinstance(found, int) else None


def _of_sentences(folder: Path) -> dict[str, Any]:
    """Return what sentence-transformers keeps of how texts are read; nothing where it has written nothing."""
    said = read_json(folder / SENTENCES, BadTeacher) if (folder / SENTENCES).exists() else {}
    return said if isinstance(said, dict) else {}


def preprocessing_of(folder: Path, options: TeacherOptions) -> Preprocessing:
    """Return how images are normalised, as the job says it, else as the folder does.

    Raises:
        BadTeacher: as `preprocessing_as`.
    """
    return preprocessing_as(folder, options.mean, options.std, wrong=BadTeacher, where="[[teacher]]")


def answers_of(folder: Path, config: dict[str, Any], options: TeacherOptions) -> dict[str, Any]:
    """Return what a cache is promised of how answers are made of a model's own; nothing of a causal one's.

    Raises:
        BadTeacher: as `pooled_of`, `preprocessing_of`.
    """
    purpose = purpose_of(folder, config, options.pooling)
    named = {} if options.classes is None else {"classes": options.classes}
    if purpose is EMBEDDING:
        return {"answers": {"kind": "embedding", **pooled_of(folder, options)._asdict()}}
    if purpose is IMAGE_CLASSES:
        mean, std = preprocessing_of(folder, options)
        return {"answers": {"kind": "image_classes", "mean": list(mean), "std": list(std)} | named}
    return {} if purpose is CAUSAL else {"answers": {"kind": "text_classes"} | named}


def taken_over(folder: Path, purpose: Purpose, options: TeacherOptions) -> list[str]:
    """Return what is taken over from a folder, and not said by the job, in words."""
    if purpose is EMBEDDING:
        found = []
        if options.pooling is None:
            pooling, normalize = pooled_of(folder, options)
            scaled = ", then scaled to length 1" if normalize else ""
            found.append(f"embeddings are pooled by {pooling}{scaled}, as {MODULES} says")
        if _of_sentences(folder).get("do_lower_case") is True:
            found.append(f"{SENTENCES} has do_lower_case = true, and texts are tokenised as they are: lower them first")
        return found
    if purpose is IMAGE_CLASSES and options.mean is None:
        mean, std = preprocessing_of(folder, options)
        return [f"mean = {list(mean)}, std = {list(std)}, as {PREPROCESSOR} says"]
    return []


def answering(model: Any, purpose: Purpose, folder: Path, options: TeacherOptions) -> nn.Module:
    """Return a model behind what makes its answers: from ids and a mask, or pixels, to one row each."""
    from storage.language.answering import Embedding, TextClassifier
    from teacher_cache.teachers.kinds.transformers_model import ImageClassifier

    if purpose is EMBEDDING:
        pooling, normalize = pooled_of(folder, options)
        return Embedding(model, pooling, normalize=normalize)
    if purpose is IMAGE_CLASSES:
        # the job's own are applied to any teacher, before it is called
        mean, std = preprocessing_of(folder, options) if options.mean is None else ((0.0,), (1.0,))
        return ImageClassifier(model, list(mean), list(std))
    return TextClassifier(model) if purpose is TEXT_CLASSES else model
