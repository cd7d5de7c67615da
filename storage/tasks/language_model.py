"""The next token at each position of a block. S rows of a shard, B of a batch, L positions of a block."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from storage.inputs.ragged import Ragged
from storage.tasks.base import LABELLED, NO_LABEL, Answered, Task, perplexity_of

if TYPE_CHECKING:
    from torch import Tensor

    from storage.format.specs import DatasetSpec
    from storage.inputs import Inputs, Stored


CLEARLY_BELOW = 0.9  # of the nats of a uniform guess, above which a teacher hardly knows the language


class LanguageModel(Task):
    """A class, the token that follows, at each position; −1 where nothing is to be predicted: prompts, padding."""

    name: ClassVar[Literal["language_model"]] = "language_model"
    inputs = ("tokens", "sequences", "packed")
    site_name = "token"
    unlabelled_sites = False
    label_array: ClassVar[str] = "labels"
    padded_classes = True  # models round their vocabulary up, for the sake of the hardware
    figure = "cross_entropy"
    look_at = "whether teacher and dataset have one tokenizer, at the template of texts and at the teacher's weights"
    pooled_features = False  # a feature is a vector of each position

    def num_classes(self, dataset: DatasetSpec) -> int:
        assert dataset.vocabulary is not None  # of tokens, which its spec has checked
        return dataset.vocabulary

    def described(self, dataset: DatasetSpec) -> str:
        return f"a vocabulary of {dataset.vocabulary}"

    def sites(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(input_shape)

    def blank_labels(self, num_rows: int, input_shape: Sequence[int], kind: Inputs) -> dict[str, Any]:
        labels_S = kind.blank_rows(num_rows, input_shape, "int32")
        if isinstance(labels_S, np.ndarray):
            labels_S.fill(NO_LABEL)
        return {self.label_array: labels_S}

    def labels(self, table: pa.Table, read: Callable[[str], Stored], chosen_S: np.ndarray) -> np.ndarray:
        labels_S = read(self.label_array)
        chosen = labels_S.take(chosen_S).padded(NO_LABEL) if isinstance(labels_S, Ragged) else labels_S[chosen_S]
        return chosen.astype(np.int64)

    def site_keys(self, keys_B: Tensor, input_shape: Sequence[int]) -> Tensor:
        from storage.encodings.draws import position_keys

        return position_keys(keys_B, input_shape[0])

    def row_columns(self, sites: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        known = labels >= 0
        # Means over the positions that have a label, where 0 / 0 is NaN; a block has no class of its own.
        means = {
            name: value.masked_fill(~known, 0.0).sum(1) / known.sum(1) for name, value in sites.items() if name != "top"
        }
        # so that means over many blocks are of their positions, however many each has
        return {"top": labels.new_full((len(labels),), NO_LABEL), **means, LABELLED: known.sum(1)}

    def standing(
        self, answered: Answered, num_classes: int, labels: Sequence[int], deviations: Sequence[float] = ()
    ) -> tuple[str, bool]:
        nats = answered.nats / answered.labelled
        text = f"perplexity {perplexity_of(nats):,.4g} of {answered.labelled:,} tokens; chance {num_classes:,}"
        return text, nats > CLEARLY_BELOW * math.log(num_classes)

    def chance(self, num_classes: int, labels: Sequence[int]) -> float:
        return math.log(max(num_classes, 1))
