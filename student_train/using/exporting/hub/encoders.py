"""An encoder with one answer for each text, as a folder of transformers: a classifier, or what is pooled to a vector.

The folder of one that is pooled is that of sentence-transformers too, whose files say how. Either library makes tokens
of a text as the student's rows were made, which is tried before the folder counts.

L positions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from storage.errors import BadRequest
from storage.language.answering import Embedding, TextClassifier
from storage.language.model_folder import import_transformers
from storage.language.pooling import MODULES, POOLINGS, Pooling, pooled_as
from storage.language.tokenizer import Around, around, decoder, encoder
from student_train.students import Student
from student_train.students.files import TOKENIZER_FILE
from student_train.using.exporting.hub.beside import TOKENIZER_CONFIG, Beside
from student_train.using.exporting.hub.form import LOADED_AS, WHAT, Form

LIBRARY = "sentence-transformers"
MODULES_OF = ("Transformer", "Pooling", "Normalize")
LIMITS, ABOUT, POOLING_FILE = "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json"
KEYS: dict[Pooling, str] = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
PADS = ("[PAD]", "<pad>", "<|pad|>")


def answers_texts(student: Student) -> bool:
    """Return whether a student of transformers has one answer for each text."""
    return isinstance(student.network, Embedding | TextClassifier)


def form_of_texts(student: Student, beside: Beside) -> Form:
    """Return the form of an encoder, with the tokenizer by which its rows were made."""
    network: Any = student.network
    model = named_classes(student)

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        write_modules(student, folder)

    def answers(folder: Path) -> Callable[[Tensor], Tensor]:
        written = load_again(student, folder)

        def vectors_or_logits(inputs: Tensor) -> Tensor:
            found: Tensor = student.blueprint.made_of.call(written, inputs)
            return found

        return vectors_or_logits

    def check(rows: Sequence[Tensor], folder: Path) -> str | None:
        return check_tokens(student, rows, folder)

    library, use = use_of(student)
    with_tokenizer = replace(beside, files=tokenizer_files(student, beside.files))
    return Form(type(network.model).__name__, write, answers, with_tokenizer, library, use, check)


def named_classes(student: Student) -> Any:
    """Return the model of transformers within; of a classifier its config names the classes."""
    network: Any = student.network
    if not isinstance(network, Embedding) and (names := student.blueprint.classes):
        network.model.config.id2label = dict(enumerate(names))
        network.model.config.label2id = {name: number for number, name in enumerate(names)}
    return network.model


def write_modules(student: Student, folder: Path) -> None:
    """Write what sentence-transformers reads beside the model, of one that is pooled; of a classifier nothing."""
    network = student.network
    if not isinstance(network, Embedding):
        return
    kinds = [*MODULES_OF[:2], *MODULES_OF[2:] * network.normalize]
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{kind}" if number else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, kind in enumerate(kinds)
    ]
    width = student.blueprint.num_classes
    pooling = {"word_embedding_dimension": width} | {KEYS[each]: each == network.pooling for each in POOLINGS}
    files: dict[str, Any] = {
        MODULES: modules,
        POOLING_FILE: pooling,
        LIMITS: {"max_seq_length": student.blueprint.input_shape[0], "do_lower_case": False},
        ABOUT: {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    }
    for name, value in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")


def load_again(student: Student, folder: Path) -> nn.Module:
    """Return what a written folder says, as its own files have it: from ids and a mask to the answers of texts."""
    auto: Any = import_transformers(WHAT)
    how: dict[str, Any] = {"dtype": torch.float32, **LOADED_AS}
    if isinstance(student.network, TextClassifier):
        return TextClassifier(auto.AutoModelForSequenceClassification.from_pretrained(folder, **how)).eval()
    pooled = pooled_as(folder, None, None, wrong=BadRequest, where=MODULES)
    return Embedding(auto.AutoModel.from_pretrained(folder, **how), pooled.pooling, normalize=pooled.normalize).eval()


def tokenizer_files(student: Student, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files of a tokenizer, changed so that tokens are made as those of the student's rows were.

    Args:
        student: that has one.
        files: by name: the tokenizer, and its config.
    """
    if TOKENIZER_FILE not in files:
        return dict(files)
    tokenizer = json.loads(files[TOKENIZER_FILE])
    config = json.loads(files[TOKENIZER_CONFIG])
    if not (student.blueprint.source or {}).get("add_special_tokens"):
        tokenizer["post_processor"] = None  # its template, which the rows were made without
    tokenizer["truncation"] = tokenizer["padding"] = None  # whoever encodes texts says these
    config["model_max_length"] = student.blueprint.input_shape[0]
    special = {int(each["id"]): str(each["content"]) for each in tokenizer.get("added_tokens") or ()}
    if config.get("pad_token") is None and special:  # no mask names it; but a text may, so it is none of a text's own
        own = named_classes(student).config.get_text_config().pad_token_id
        first = next((name for name in PADS if name in special.values()), next(iter(special.values())))
        config["pad_token"] = special.get(-1 if own is None else own, first)
    return dict(files) | {
        TOKENIZER_FILE: json.dumps(tokenizer, ensure_ascii=False).encode(),
        TOKENIZER_CONFIG: json.dumps(config, indent=2, ensure_ascii=False).encode(),
    }


def check_tokens(student: Student, rows: Sequence[Tensor], folder: Path) -> str | None:
    """Check that the library makes the tokens of a text that a student's rows have; return what is told of that.

    Args:
        student: that was written.
        rows: of its inputs, whose texts are tried too.
        folder: that was written.

    Raises:
        BadRequest: it makes others, so that the exported model would answer otherwise.
    """
    if student.tokenizer is None:
        return None
    length, encode, decode = student.blueprint.input_shape[0], encoder(student.tokenizer), decoder(student.tokenizer)
    nothing = np.empty(0, np.int32)
    as_told = (student.blueprint.source or {}).get("add_special_tokens")
    template = around(student.tokenizer) if as_told else Around(nothing, nothing)
    inner = slice(len(template.before), -len(template.behind) or None)
    decoded = [decode([each for each in row.flatten().tolist() if each >= 0][inner]) for row in rows]
    # whole texts alone: what the tokenizer itself calls a special token is spelled out in rows
    plain = [text for text in decoded if "<" not in text and "[" not in text]
    if not plain:
        return None
    texts = [*plain, " ".join(plain * length)]  # the last is cut
    library = import_transformers(WHAT).AutoTokenizer.from_pretrained(folder, **LOADED_AS)
    made = library(texts, truncation=True, max_length=length)["input_ids"]
    for text, ids, other in zip(texts, encode(texts), made, strict=True):
        own = template.put(ids, length).tolist()
        if own != list(other):
            raise BadRequest(
                "the exported tokenizer makes other tokens than the student's rows have",
                found=f"{list(other)[:12]} of {text[:60]!r}",
                expected=f"{own[:12]}",
                do="--tokenizer FOLDER, of the same tokenizer, whose config adds nothing to it",
            )
    return f"tokens of {len(texts)} texts: the same"


def use_of(student: Student) -> tuple[str, str]:
    """Return the library that loads such a folder, as the Hub calls it, and how, as Markdown."""
    if isinstance(student.network, TextClassifier):
        return "transformers", (
            '```python\nfrom transformers import pipeline\n\nclassify = pipeline("text-classification", ".")\n'
            'classify("a text", truncation=True)\n```\n'
        )
    return LIBRARY, (
        "```python\nfrom sentence_transformers import SentenceTransformer\n\n"
        'vectors = SentenceTransformer(".").encode(["a text", "another"])\n```\n'
    )
