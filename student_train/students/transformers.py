"""A model of the transformers library as a student, built from its config alone.

It is a causal language model; or, where the blueprint says how its answers are made, an encoder with one for each
text, a vector pooled of its hidden states or scores of classes; or scores of classes for each picture.

The config lies in the blueprint, so that a trained student needs no other folder. Nothing is fetched, no code comes
with a model, and the library is imported only where such a student is built.

B rows, L positions, N sites, D width, C ids of the dataset; V of the model, of which those from C on are padding.
"""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from storage.errors import BadRequest, StillroomError, is_out_of_memory
from storage.format.specs import DatasetSpec
from storage.inputs import inputs_of
from storage.language.answering import Embedding, ImageClassifier, TextClassifier
from storage.language.model_folder import check_config, check_transformers, import_transformers, read_config
from storage.language.pooling import POOLINGS, pooled_as
from storage.tasks import task_of
from student_train.students.calling import AsOne

ARCHITECTURE = "transformers"
WHAT = f'architecture = "{ARCHITECTURE}"'
NOT_OF_THE_MODEL = ("_name_or_path", "dtype", "torch_dtype", "transformers_version", "use_cache")
NUM_LAYERS = "num_hidden_layers"
OF_EACH_LAYER = re.compile(r"layer|block")  # in the name of a list that is as long as there are layers
OF_ANSWERS = ("pooling", "normalize")  # options of an encoder whose answers are vectors, beside the keys of its config
EMBEDDING, TEXT_CLASSES, IMAGE_CLASSES = "embedding", "text_classes", "image_classes"
IMAGE_AXES = 3  # of a row: channels, height, width
WHATS = {  # what is made of a config, and by which class of the library, by the kind of its answers
    None: ("causal language model", "AutoModelForCausalLM"),
    EMBEDDING: ("encoder", "AutoModel"),
    TEXT_CLASSES: ("classifier of texts", "AutoModelForSequenceClassification"),
    IMAGE_CLASSES: ("classifier of images", "AutoModelForImageClassification"),
}
TRIED_TOKENS = 4
TRIED_LOGITS = 100.0  # their deviation: what caps or scales logits is seen, though those of fresh weights are small

_in_two_parts: dict[str, bool] = {}  # config → as tried, for models on the meta device, which have no values


def embedded(
    folder: Path,
    options: dict[str, Any],
    answers: dict[str, Any] | None = None,
    layers: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Return the options of the blueprint of a student: the config of a folder, some of its keys replaced.

    What a config says of each layer, as `layer_types` does of which layers slide a window, follows their number.

    Args:
        folder: of the model.
        options: keys of its config.
        answers: how its one answer for each text is made; None: it has one at each position.
        layers: of the folder, from which the student's are taken, one for each; None: the first.

    Raises:
        BadRequest: transformers is not installed, or does not know the model; or an option is no key of its config.
        MissingSource: there is no config.
    """
    check_transformers(WHAT)
    config = {key: value for key, value in read_config(folder, BadRequest).items() if key not in NOT_OF_THE_MODEL}
    known = _config(config, _kind(answers))
    if unknown := [key for key in options if not hasattr(known, key)]:
        raise BadRequest(
            f"a {type(known).__name__} has no such key",
            found=", ".join(unknown),
            expected=", ".join(key for key in known.to_dict() if not key.startswith("_"))[:600],
            do="`options` of such a student replace keys of the config in its `path`",
        )
    # Under the name that the folder has: a model's own name for a key, and the library's for the same, would contradict
    names = {getattr(known, "attribute_map", {}).get(key, key): value for key, value in options.items()}
    config = of_layers(config, known, names, layers) | names
    return {"config": config} | ({} if answers is None else {"answers": answers})


def of_layers(
    config: dict[str, Any], known: Any, replaced: dict[str, Any], layers: Sequence[int] | None
) -> dict[str, Any]:
    """Return a config whose lists of one entry a layer have those of the student's layers.

    Of more layers than there were, the lists are left out, and the library has its own pattern for so many.
    """
    name = getattr(known, "attribute_map", {}).get(NUM_LAYERS, NUM_LAYERS)
    was = getattr(known, NUM_LAYERS, None)
    now = replaced.get(name, was)
    if not isinstance(was, int) or not isinstance(now, int) or (now == was and layers is None):
        return config
    taken = list(range(now)) if layers is None else list(layers)
    fits = len(taken) == now and all(0 <= layer < was for layer in taken)
    followed = dict(config)
    for key, value in config.items():
        if isinstance(value, list) and len(value) == was and OF_EACH_LAYER.search(key):
            if fits:
                followed[key] = [value[layer] for layer in taken]
            elif now != was:
                del followed[key]
    return followed


def embedded_for(
    dataset: DatasetSpec, folder: Path, options: dict[str, Any], layers: Sequence[int] | None = None
) -> dict[str, Any]:
    """Return the options of the blueprint of a student for what a dataset asks of its rows; `layers` as `embedded`.

    Raises:
        BadRequest, MissingSource: as `embedded`, and as `pooled_as`.
    """
    task = task_of(dataset)
    if task.sites(dataset.input_shape):
        return embedded(folder, options, layers=layers)
    if task.has_classes:
        kind = IMAGE_CLASSES if inputs_of(dataset).scaled else TEXT_CLASSES
        return embedded(folder, options, {"kind": kind}, layers)
    said = {key: options[key] for key in OF_ANSWERS if key in options}
    pooled = pooled_as(folder, said.get("pooling"), said.get("normalize"), wrong=BadRequest, where="`options`")
    of_config = {key: value for key, value in options.items() if key not in said}
    return embedded(folder, of_config, {"kind": EMBEDDING, **pooled._asdict()}, layers)


def transformers(
    num_classes: int,
    input_shape: tuple[int, ...],
    *,
    vocabulary: int | None = None,
    config: dict[str, Any],
    answers: dict[str, Any] | None = None,
) -> nn.Module:
    """Return the model of a config with fresh weights, in float32, drawn from torch's global generator.

    Layers to learn from are named as in the model: `network.model.layers.0`, …; of one with an answer for each text
    behind `network.model.`.

    Args:
        num_classes: of the vocabulary, or of the one answer: how many classes it has, or how wide it is.
        input_shape: (L,); of pictures (channels, H, W).
        vocabulary: number of ids, where that is not the number of classes.
        config, answers: as `embedded` gives them.

    Raises:
        BadRequest: inputs are no tokens, or it makes no such answers.
    """
    kind = _kind(answers)
    if len(input_shape) != (IMAGE_AXES if kind == IMAGE_CLASSES else 1) or (answers is None and vocabulary):
        raise BadRequest(
            f"{WHAT} cannot take these inputs",
            found=f"inputs of shape {input_shape}" + ", each with one class" * (len(input_shape) == 1),
            expected="tokens, each with the one that follows; texts, each with a class or a vector; or pictures, each "
            "with a class",
            do="a dataset of tokens, texts or pictures; or another architecture",
        )
    if kind not in WHATS or (kind == EMBEDDING and answers is not None and answers.get("pooling") not in POOLINGS):
        raise BadRequest(
            f"{WHAT} makes no such answers", found=json.dumps(answers), do="student train makes blueprints"
        )
    what, auto = WHATS[kind]
    library = import_transformers(WHAT)
    made = _config(config, kind)
    text = made.get_text_config()
    if kind == IMAGE_CLASSES:
        _check_pictures(made, input_shape)
    else:
        _check_fits(text, input_shape[0], vocabulary or num_classes, num_classes if kind == EMBEDDING else None)
    for part in (made, text):
        part.use_cache = False  # keys and values of a text that nobody goes on with
        part.output_hidden_states = part.output_attentions = False
        part.return_dict = True
    if kind in (TEXT_CLASSES, IMAGE_CLASSES):
        made.num_labels = num_classes
    with _refusing(made, what, auto):
        model: nn.Module = getattr(library, auto).from_config(made, dtype=torch.float32, trust_remote_code=False)
    if answers is None:
        return model
    if kind in (TEXT_CLASSES, IMAGE_CLASSES):
        return (TextClassifier if kind == TEXT_CLASSES else ImageClassifier)(model)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # type: ignore[assignment]  # of whose answer nothing is made
    return Embedding(model, answers["pooling"], normalize=bool(answers.get("normalize")))


def _check_pictures(config: Any, shape: tuple[int, ...]) -> None:
    """Raise BadRequest unless a model of a config takes pictures of a shape, (channels, H, W)."""
    channels, size = getattr(config, "num_channels", shape[0]), getattr(config, "image_size", None)
    sides = (size, size) if isinstance(size, int) else shape[1:] if size is None else tuple(size)
    if (channels, *sides) != tuple(shape):
        raise BadRequest(
            "the student's pictures are others than those of the dataset",
            found=f"num_channels = {channels}, image_size = {size}",
            expected=f"{shape[0]} channels, {shape[1]}×{shape[2]}",
            do=f"options = {{ image_size = {shape[1] if shape[1] == shape[2] else list(shape[1:])} }}, as far as the "
            "weights allow it; or the dataset's `size` and `channels`",
        )


def _check_fits(config: Any, length: int, num_ids: int, width: int | None) -> None:
    """Raise BadRequest unless a model of a config takes rows of a length and so many ids, and answers in a width.

    Args:
        config: of the model of text.
        length: of the longest row.
        num_ids: of the tokenizer.
        width: of the vectors that it is to tell; None: its answers are no hidden states.
    """
    if config.vocab_size < num_ids:
        raise BadRequest(
            "the student's vocabulary is smaller than the cache's",
            found=f"vocab_size = {config.vocab_size}",
            expected=f"{num_ids} ids, or more: what is beyond them is padding, and cut",
            do=f"options = {{ vocab_size = {num_ids} }}; or a model of the tokenizer that made the tokens",
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and longest < length:
        raise BadRequest(
            "the student's rows are longer than its config foresees",
            found=f"max_position_embeddings = {longest}",
            expected=f"{length} positions",
            do=f"options = {{ max_position_embeddings = {length} }}, or shorter rows in the cache",
        )
    if width is not None and (own := getattr(config, "hidden_size", width)) != width:
        raise BadRequest(
            f"the vectors of this {WHAT} are its hidden states, of another width than those it learns from",
            found=f"{own} wide",
            expected=f"{width}",
            do='a model of that width; or architecture = "encoder", whose head has any',
        )


class OfTransformers(AsOne):
    """Calls a model of transformers; in two parts, its body and its head, where it is no more than these.

    Args:
        model: that is called.
        num_classes: C.
        config: of the model.
    """

    def __init__(self, model: Any, num_classes: int, config: dict[str, Any]):
        self._num_classes = num_classes
        key = json.dumps(config, sort_keys=True)
        if next(model.parameters()).device.type != "meta":
            _in_two_parts[key] = is_in_two_parts(model)
        self.in_two_parts = _in_two_parts.get(key, model.get_output_embeddings() is not None)

    def logits(self, network: Any, *given: Tensor) -> Tensor:
        return self._cut(_called(network, *given).logits)

    def hidden(self, network: Any, *given: Tensor) -> Tensor:
        if not self.in_two_parts:
            return self.logits(network, *given)
        hidden_BLD: Tensor = _called(network.base_model, *given).last_hidden_state
        return hidden_BLD

    def scores(self, network: Any, hidden_ND: Tensor) -> Tensor:
        return self._cut(network.get_output_embeddings()(hidden_ND)) if self.in_two_parts else hidden_ND

    def _cut(self, logits_NV: Tensor) -> Tensor:
        return logits_NV if logits_NV.shape[-1] == self._num_classes else logits_NV[..., : self._num_classes]


def is_in_two_parts(model: Any) -> bool:
    """Return whether a model's logits are those that its head gives for what its body gives, however large they are.

    Its own forward pass is watched: the head must be given the body's states. It is made to see others instead, of
    which logits are large, and these must come out: not scaled, not capped.
    """
    head, training = model.get_output_embeddings(), model.training
    if head is None:
        return False
    device = next(itertools.chain(head.parameters(), head.buffers())).device  # codes are no parameters
    tokens_BL = torch.arange(TRIED_TOKENS, device=device)[None]
    given: list[Tensor] = []

    def replace(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        given.append(inputs[0])
        return (large_BLD.to(inputs[0].dtype),)

    model.eval()  # dropout would make any two passes differ
    try:
        with torch.no_grad():
            hidden_BLD = _called(model.base_model, tokens_BL).last_hidden_state
            # of no generator: what a student draws from its seed must not depend on whether it was tried
            steps = torch.arange(hidden_BLD.numel(), device=device, dtype=torch.float32)
            large_BLD = (steps.sin() * TRIED_LOGITS).view(hidden_BLD.shape).to(hidden_BLD.dtype)
            large_BLD = large_BLD * (TRIED_LOGITS / head(large_BLD).std().clamp(min=1e-6))
            watch = head.register_forward_pre_hook(replace)
            try:
                logits_BLV = _called(model, tokens_BL).logits
            finally:
                watch.remove()
            return (
                len(given) == 1
                and given[0].shape == hidden_BLD.shape
                and torch.allclose(given[0], hidden_BLD, rtol=1e-3, atol=1e-4)
                and torch.allclose(logits_BLV.float(), head(large_BLD).float(), rtol=1e-3, atol=1e-2)
            )
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):  # a body that is no function of tokens
        return False
    finally:
        model.train(training)


def _called(module: Any, tokens_BL: Tensor, positions_BL: Tensor | None = None) -> Any:
    """Return what a model, or its body, gives for int64 tokens; `positions_BL` count from the first of a document."""
    placed = {} if positions_BL is None else {"position_ids": positions_BL}  # from which its masks part documents
    if tokens_BL.device.type != "meta":
        return module(input_ids=tokens_BL, **placed)
    try:
        return module(input_ids=tokens_BL, **placed)
    except (RuntimeError, NotImplementedError):  # most look at values to know whether rows are packed; not with a mask
        rows, length = tokens_BL.shape
        mask = torch.ones((), dtype=torch.bool, device="meta").expand(rows, 1, length, length)
        return module(input_ids=tokens_BL, attention_mask=mask, **placed)


def _kind(answers: dict[str, Any] | None) -> str | None:
    return None if answers is None else answers.get("kind")


def _config(config: dict[str, Any], answering: str | None) -> Any:
    """Return a config as an object of the library, of a model of a kind of answers.

    Raises:
        BadRequest: it does not know it, or takes no such values.
    """
    check_config(config, "the blueprint", BadRequest)  # a student.json may be a stranger's
    import_transformers(WHAT)
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise BadRequest(
            "transformers knows no such model",
            found=f"model_type = {json.dumps(kind)}",
            expected="one of its own, such as llama, qwen3, gemma3_text, gpt2",
            do="a newer transformers; or an `architecture` of your own, module:factory",
        )
    with _refusing(config, *WHATS[answering]):
        return CONFIG_MAPPING[kind].from_dict(dict(config))


@contextmanager
def _refusing(config: Any, what: str, auto: str) -> Iterator[None]:
    """Have whatever a model raises that does not take its config as a refusal, and its warnings for itself.

    Args:
        config: of the model.
        what: it is, in words.
        auto: the library's class that makes it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except StillroomError:
            raise
        except Exception as error:  # of any class
            if is_out_of_memory(error):
                raise
            kind = config["model_type"] if isinstance(config, dict) else config.model_type
            raise BadRequest(
                f"transformers makes no {what} of this config of a {kind}",
                found=f"{type(error).__name__}: {error}"[:600],
                do=f"{auto}.from_config(AutoConfig.from_pretrained(FOLDER)) should take it",
            ) from error
