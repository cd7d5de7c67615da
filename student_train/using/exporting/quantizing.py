"""An ONNX file in int8, weights and activations, convolutions too: onnxruntime's static quantisation.

The ranges of activations are those of held rows; how much the figures change is measured on all held rows.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from storage.cache import Cache
from storage.errors import BadRequest
from student_train.options.sections import listed
from student_train.run_files.records import RunRecord
from student_train.using.answering import INT8_FILE, ONNX_FILE, Answerer, load_onnx
from student_train.using.evaluating.evaluate import Evaluation, evaluate_rows
from student_train.using.evaluating.rows import LabelledRows, rows_of_cache
from student_train.using.exporting.written import Written, onnx_use

CALIBRATED = 512  # rows
AT_ONCE = 64
SHARES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "agreement": "agreement with {teacher}",
    "retrieval": "same nearest as {teacher}",
}
NUMBERS = {
    "cross_entropy": "cross-entropy",
    "cosine": "cosine to {teacher}",
    "spearman": "Spearman of cosines",
    "rmse": "RMSE",
}


def quantize_file(own: Answerer, record: RunRecord, folder: Path, cache: str | None) -> tuple[Written, list[str]]:
    """Put a quantised file in the place of `model.onnx`; return it, and how much the figures change.

    Args:
        own: the student.
        record: of its run.
        folder: where `model.onnx` lies.
        cache: where its held rows are; None: where they were.

    Raises:
        BadRequest: its held rows cannot be had.
    """
    url, held = cache or record.cache, record.identity.get("data", {}).get("validation")
    if url is None or held is None:
        raise BadRequest("--quantize is calibrated on held rows, and nobody knows where they are", do="--cache URL")
    name = listed(held)[0]
    rows = rows_of_cache(Cache.open(url), name, own.blueprint, own.device, None, record.identity.get("teachers", {}))
    _quantize(folder, own, rows)
    (folder / ONNX_FILE).unlink()
    small = load_onnx(folder / INT8_FILE)
    assert own.student is not None
    written = Written("ONNX model in int8", "onnx", small.logits, onnx_use(own.student, INT8_FILE))
    try:
        before, after = (evaluate_rows(each, rows) for each in (own, small))
    except BadRequest as error:  # neither labels nor a teacher's answers: there is a file all the same
        return written, [f"int8, calibrated on held rows of {name}; figures are not measured: {error.what}"]
    return written, [
        f"int8, calibrated on {min(CALIBRATED, rows.num_rows or before.rows)} held rows of {name}",
        *_changes(before, after),
    ]


def _quantize(folder: Path, own: Answerer, rows: LabelledRows) -> None:
    """Write the ONNX file of a folder in int8, calibrated on held rows, with all that the first said of itself."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Held(CalibrationDataReader):  # type: ignore[misc]  # a class of a package without types
        def __init__(self, names: list[str]):
            self._each = _feeds(own, rows, names)

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            return next(self._each, None)

    prepared = folder / "prepared.onnx"
    said = {entry.key: entry.value for entry in onnx.load(folder / ONNX_FILE, load_external_data=False).metadata_props}
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # of a library about its own advice
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quant_pre_process(str(folder / ONNX_FILE), str(prepared), skip_symbolic_shape=True)
            names = [each.name for each in onnx.load(prepared).graph.input]
            quantize_static(
                str(prepared),
                str(folder / INT8_FILE),
                Held(names),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                # 7 bits of a weight: where a processor has no VNNI, sums of 8 saturate (docs/log.md: 92.5 % to 35.7 %)
                reduce_range=True,
            )
    except Exception as error:  # whatever a library says of a graph that it cannot quantise
        raise BadRequest(
            f"{own.name} cannot be quantised by onnxruntime",
            found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            do="export it without --quantize",
        ) from error
    finally:
        logging.disable(before)
        prepared.unlink(missing_ok=True)
    model = onnx.load(folder / INT8_FILE)
    onnx.helper.set_model_props(model, said)
    onnx.save(model, folder / INT8_FILE)


def _feeds(own: Answerer, rows: LabelledRows, names: list[str]) -> Iterator[dict[str, Any]]:
    made_of = own.blueprint.made_of
    for batch, _ in islice(rows.batches(AT_ONCE), CALIBRATED // AT_ONCE):
        arguments = made_of.spread(made_of.arguments(batch.shown).to(torch.device("cpu")))
        yield {name: values.numpy() for name, values in zip(names, arguments, strict=True)}


def _changes(before: Evaluation, after: Evaluation) -> list[str]:
    """Return how much each figure changes, a line each."""
    found = []
    for key, words in (SHARES | NUMBERS).items():
        one, other = getattr(before.figures, key), getattr(after.figures, key)
        if one is None or other is None:
            continue
        what = words.format(teacher=before.teacher)
        if key in NUMBERS:
            unit = " nats" if key == "cross_entropy" else ""
            found.append(f"{what} {one:.4f} → {other:.4f}{unit} on {before.rows:,} held rows")
        else:
            found.append(f"{what} {100 * one:.2f} → {100 * other:.2f} % on {before.rows:,} held rows")
    return found
