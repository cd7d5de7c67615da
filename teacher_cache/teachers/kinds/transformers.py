"""A model in a folder as transformers' `save_pretrained` writes it: config, tokenizer, safetensors.

A causal language model, a classifier of texts or images, or an encoder whose embeddings are pooled: what it is for, its
folder says (`transformers_purpose.py`).

Only JSON files, the named files of weights and `tokenizer.json` are read, by this process and from this disk: no
pickle, no hub, and no code that comes with a model but what the job trusts by name.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.digests import file_digest
from storage.errors import BadRequest, BadTeacher, BadWeights, StillroomError, is_out_of_memory
from storage.language.folder_code import code_digests, load_class
from storage.language.model_folder import (
    CONFIG,
    SHOWN,
    WEIGHTS,
    check_known,
    check_transformers,
    import_transformers,
    listed,
    read_config,
    weights_files,
)
from teacher_cache.teachers.kinds.transformers_purpose import (
    CAUSAL,
    EMBEDDING,
    IMAGE_CLASSES,
    TEXT_CLASSES,
    Purpose,
    answering,
    answers_of,
    class_names,
    longest_of,
    purpose_of,
    taken_over,
    width_of,
)
from teacher_cache.teachers.loaded import tapped_layers
from teacher_cache.teachers.spoken import Spoken, spoken_by
from teacher_cache.teachers.weights import read_shapes, read_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from storage.format.specs import DatasetSpec
    from teacher_cache.teachers.options import TeacherOptions

KEYS: tuple[str, ...] = (
    "path",
    "dtype",
    "attention",
    "trust_code",
    "device_map",
    "pooling",
    "normalize",
    "classes",
    "mean",
    "std",
)

WHAT = 'kind = "transformers"'

TOKENIZER = "tokenizer.json"
TRIED_TOKENS = 8  # that a model is asked about when it is loaded, to see that it looks at none that comes later
OF_A_GPU = ("flash_attention_2", "flex_attention")  # of no use on the CPU where a model is loaded
LOOKED_AHEAD = 1e-2  # of the largest logit: far more than rounding


def told(options: TeacherOptions) -> dict[str, Any]:
    """Return what the job itself tells of the model: precision and attention, None for the model's own."""
    return {"dtype": options.dtype, "attention": options.attention}


def digests(options: TeacherOptions) -> dict[str, Any]:
    """Return the digests of the config, of every file of weights, and of code that is trusted."""
    check_transformers(WHAT)  # before anything is read; importing it takes a second
    folder = _folder(options)
    config = read_config(folder, BadTeacher, options.trust_code or ())
    return (
        answers_of(folder, config, options)
        | {
            "config": file_digest(folder / CONFIG),
            "weights": {name: file_digest(folder / name) for name in weights_files(folder)},
        }
        | ({} if options.trust_code is None else {"code": code_digests(folder)})
    )


def spoken(options: TeacherOptions) -> Spoken:
    """Return the tokenizer of the folder."""
    path = _folder(options) / TOKENIZER
    if not path.exists() and not path.parent.is_dir():
        read_config(path.parent, BadTeacher)  # which says that there is no such folder
    if not path.exists():
        return Spoken(None, f"there is no {path}; AutoTokenizer.from_pretrained(…).save_pretrained(…) writes one")
    return spoken_by(path)


def classes(options: TeacherOptions) -> list[str] | None:
    """Return the names of a classifier's scores, the job's or those of its config; None of tokens, which need none."""
    _, config, purpose = _read(options)
    return (options.classes or class_names(config)) if purpose in (TEXT_CLASSES, IMAGE_CLASSES) else None


def dimension(options: TeacherOptions) -> int | None:
    """Return the width of its hidden states, which that of an embedding is. Raises BadTeacher: it has no embedding."""
    folder, config, purpose = _read(options)
    if purpose is not EMBEDDING:
        raise BadTeacher(
            f"the model in {folder} gives no vectors",
            found=f"a {purpose.what}: architectures = {config.get('architectures')}, no modules.json",
            expected="an encoder whose hidden states are pooled",
            do='pooling = "mean" in [[teacher]], or "cls", "max" or "lasttoken", as it was trained',
        )
    return width_of(config)


def wants_around(options: TeacherOptions) -> bool:
    """Return whether its texts have what the tokenizer's template puts around them: all encoders were trained so."""
    return _read(options)[2] in (EMBEDDING, TEXT_CLASSES)


def longest(options: TeacherOptions) -> int | None:
    """Return how many tokens of a text sentence-transformers would give it, of an encoder whose folder says so."""
    folder, _, purpose = _read(options)
    return longest_of(folder) if purpose is EMBEDDING else None


def notes(options: TeacherOptions) -> list[str]:
    """Return what its folder decides of its answers: how they are pooled, how its images are normalised."""
    folder, _, purpose = _read(options)
    return taken_over(folder, purpose, options)


def check_files(options: TeacherOptions, dataset: DatasetSpec) -> None:
    """Check that the tensors of the files are those of the model, by names and shapes, and tapped layers are there.

    Raises:
        BadRequest, MissingSource, BadWeights: as `load`; what else ends that is told by the worker that it happens to.
    """
    import_libraries()
    folder = _folder(options)
    config = read_config(folder, BadTeacher, options.trust_code or ())
    check_known(folder, config, options.trust_code or ())
    purpose, shapes = purpose_of(folder, config, options.pooling), _shapes(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model, found = _build(options, folder, purpose, config.get("auto_map", {}), shapes)
        except StillroomError:
            raise
        except Exception:
            return
    _check_fit(folder, model, found, purpose)
    if purpose is CAUSAL:  # others are wrapped, by which their layers have other names
        _check_ids(folder, model, dataset)  # an encoder's tokenizer may have ids, as of pictures, that no text becomes
        tapped_layers(options, model)


def import_libraries() -> None:
    """Import transformers, and keep its bars and remarks off the terminal. Raises BadRequest: it is not installed."""
    import_transformers(WHAT)


def load(options: TeacherOptions) -> nn.Module:
    """Return the model on the CPU, in the precision that was stored or is asked for.

    Raises:
        BadRequest: transformers is not installed.
        MissingSource: the folder, its config or its weights are not there.
        BadTeacher: transformers does not take the config, or the model is no causal one.
        BadWeights: a file cannot be read, or the tensors do not fit.
    """
    import_libraries()
    folder = _folder(options)
    config = read_config(folder, BadTeacher, options.trust_code or ())
    check_known(folder, config, options.trust_code or ())
    purpose, trusted = purpose_of(folder, config, options.pooling), config.get("auto_map", {})
    if purpose is not CAUSAL and options.device_map is not None:
        raise BadRequest(
            f"device_map spreads causal language models alone, and teacher {options.name} is a {purpose.what}",
            found=f"device_map = {options.device_map!r}",
            do="leave device_map out",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model, found = _build(options, folder, purpose, trusted)
        except StillroomError:
            raise
        except Exception as error:  # of any class, for a config that its model does not take
            if is_out_of_memory(error):
                raise
            raise BadTeacher(
                f"transformers {version('transformers')} makes no {purpose.what} of {folder}",
                found=f"{type(error).__name__}: {error}"[:600],
                expected=f"a folder that {purpose.auto} loads, written by save_pretrained: {CONFIG}, {WEIGHTS}",
            ) from error
    _check_fit(folder, model, found, purpose)
    if purpose is CAUSAL:
        _check_causal(folder, model, options.attention)
    return answering(model, purpose, folder, options)


def _build(
    options: TeacherOptions,
    folder: Path,
    purpose: Purpose,
    trusted: dict[str, str],
    shapes: dict[str, Tensor] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the model with its weights, and what transformers says of how they fit.

    Args:
        options: of the teacher.
        folder: its own.
        trusted: the classes of its folder's code, by transformers' name for their kind.
        purpose: what it is for.
        shapes: of its weights, as meta tensors, which then are all that it has; None: they are read.
    """
    import torch
    import transformers
    from transformers import AutoConfig

    auto_class = getattr(transformers, purpose.auto)

    # Never trust_remote_code: transformers would run copies of the code, of which an older one might lie there.
    if "AutoConfig" in trusted:
        config_class: Any = load_class(folder, trusted["AutoConfig"], BadTeacher)
        config = config_class.from_pretrained(folder, local_files_only=True)
    else:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    for part in (config, config.get_text_config()):
        part.use_cache = False  # keys and values of a text that nobody goes on with
        part.output_hidden_states = part.output_attentions = False
        part.return_dict = True
    asked = {} if options.attention is None else {"attn_implementation": options.attention}
    if purpose.auto in trusted:
        kind: Any = load_class(folder, trusted[purpose.auto], BadTeacher)
    else:
        with torch.device("meta"):  # to know its class; nothing is allocated
            kind = type(auto_class.from_config(config, trust_remote_code=False, **asked))
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = None if options.dtype is None else dtypes[options.dtype]
    mixed = kind._keep_in_fp32_modules or kind._keep_in_fp32_modules_strict  # noqa: SLF001 - no other name for it
    model, found = kind.from_pretrained(
        None,  # no folder: what lies there beside is none of its business
        config=config,
        # converted here, both are never held
        state_dict=_weights(folder, None if mixed else dtype) if shapes is None else shapes,
        dtype="auto" if dtype is None else dtype,
        ignore_mismatched_sizes=True,  # they are refused here, by name
        output_loading_info=True,
        local_files_only=True,
        **asked,
        **({} if shapes is None else {"device_map": {"": "meta"}}),
    )
    if purpose is EMBEDDING and getattr(model, "pooler", None) is not None:
        model.pooler = None  # of whose answer nothing is made; where the folder has none it is drawn
        found = found | {"missing_keys": [name for name in found["missing_keys"] if not name.startswith("pooler.")]}
    return model, found


def _check_fit(folder: Path, model: nn.Module, found: dict[str, Any], purpose: Purpose) -> None:
    """Raise BadWeights if the tensors are not those of the model; tied ones that are stored once are not missing."""
    missing, unknown = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    shapes = [
        f"{name}: {tuple(stored)} in the file, {tuple(wanted)} in the model"
        for name, stored, wanted in sorted(found["mismatched_keys"])
    ]
    faults = (
        [f"missing {listed(missing)}"] * bool(missing)
        + [f"unknown {listed(unknown)}"] * bool(unknown)
        + shapes[:SHOWN]
        + [str(error) for error in found.get("error_msgs") or []][:SHOWN]
    )
    if faults:
        raise BadWeights(
            f"the weights in {folder} do not fit the model of its {CONFIG}",
            found="\n".join(faults),
            expected=f"the tensors of a {type(model).__name__}, {len(model.state_dict())} with tied ones",
            do=f"save it again, {purpose.auto}.from_pretrained(…).save_pretrained(…)"
            + ('; or pooling = "mean" in [[teacher]], if embeddings are wanted' if purpose is CAUSAL else ""),
        )


def _check_ids(folder: Path, model: Any, dataset: DatasetSpec) -> None:
    """Raise BadTeacher if rows have ids that a model of text has no embedding of."""
    ids, asked = getattr(model.config.get_text_config(), "vocab_size", None), dataset.vocabulary or 0
    if isinstance(ids, int) and ids < asked:
        raise BadTeacher(
            f"the vocabulary of the model in {folder} is smaller than that of dataset {dataset.name}",
            found=f"vocab_size = {ids}",
            expected=f"{asked} ids, or more: what is beyond them is padding",
            do="a model that was trained with this tokenizer, and resized to it: model.resize_token_embeddings(…)",
        )


def _check_causal(folder: Path, model: Any, attention: str | None) -> None:
    """Raise BadTeacher if what a model says of a token depends on a later one: it would tell what it was told."""
    import torch

    ids = min(model.config.get_text_config().vocab_size, TRIED_TOKENS)
    tokens_L = torch.arange(ids)
    other_L = torch.cat([tokens_L[:-1], tokens_L[:1]])
    model.eval()
    if attention in OF_A_GPU:
        model.set_attn_implementation("eager")
    with torch.inference_mode():
        said, otherwise = (model(each[None]).logits[0, :-1].float() for each in (tokens_L, other_L))
    if attention in OF_A_GPU:
        model.set_attn_implementation(attention)
    if (said - otherwise).abs().max() > LOOKED_AHEAD * said.abs().max():
        raise BadTeacher(
            f"the model in {folder} looks ahead",
            found=f"{type(model).__name__}: its logits at {ids - 1} tokens change with the token that follows them",
            expected="a causal language model, which predicts each token from those before",
            do='name one of a decoder alone; of an encoder that was trained to be one, "is_decoder": true in '
            f"{CONFIG} says so",
        )


def _read(options: TeacherOptions) -> tuple[Path, dict[str, Any], Purpose]:
    folder = _folder(options)
    config = read_config(folder, BadTeacher, options.trust_code or ())
    return folder, config, purpose_of(folder, config, options.pooling)


def _folder(options: TeacherOptions) -> Path:
    assert options.path is not None
    return options.path


def _weights(folder: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Return the tensors of all files, floats in a precision that is asked for. Raises BadWeights, MissingSource."""
    tensors: dict[str, Tensor] = {}
    for file in weights_files(folder):
        for name, stored in read_weights(folder / file).items():
            # A copy: what was read is the file itself, mapped, and would change with it under a model that runs.
            tensors[name] = stored.to(dtype if stored.is_floating_point() else None, copy=True)
    return tensors


def _shapes(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of all files without their values. Raises BadWeights, MissingSource."""
    import torch

    with torch.device("meta"):
        return {
            name: torch.empty(shape)
            for file in weights_files(folder)
            for name, shape in read_shapes(folder / file).items()
        }
