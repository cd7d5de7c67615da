"""The kinds of teacher, by what a `[[teacher]]` says of where it comes from: a key of that name, or its `kind`.

factory.py       a function of the user's, with weights from a file
student.py       the folder of a trained student
exported.py      a program that torch exported, or TorchScript: code, which a job must trust
zoo.py           a model of timm or torchvision, by its name there
onnx.py          a graph of ONNX, of any framework, computed by onnxruntime
sklearn.py       a classifier of scikit-learn, through skops
transformers.py  a model in a folder of transformers: language model, classifier, encoder

and what three of them need besides:

onnx_files.py            a graph read without computing it: external data, names, shapes
onnx_columns.py          a table's columns as its inputs, by name
onnx_model.py            it as a torch module
sklearn_columns.py       a table's columns by name, as an estimator was fitted on
sklearn_model.py         it as a torch module
transformers_purpose.py  which of the three a folder is
transformers_model.py    a classifier of images as a torch module

A new kind is a file like onnx.py, a line in the table below, and its keys among those of `TeacherOptions`.

Reading options and promises costs no torch, so that a build with nothing to do ends in under a second: kinds import
theirs where they load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from teacher_cache.teachers.kinds import exported, factory, onnx, sklearn, student, transformers, zoo

if TYPE_CHECKING:
    from torch import nn

    from storage.format.specs import DatasetSpec
    from teacher_cache.teachers.options import TeacherOptions
    from teacher_cache.teachers.spoken import Spoken


class Kind(Protocol):
    """What a kind's file says: what identifies a teacher, what it takes, how it is loaded."""

    KEYS: tuple[str, ...]
    """Of a `[[teacher]]`, those that not all kinds read and this one does."""

    def told(self, options: TeacherOptions) -> dict[str, Any]:
        """Return what the job itself tells of the model, without any of its files."""

    def digests(self, options: TeacherOptions) -> dict[str, Any]:
        """Return the digests of all files that decide what it says. Raises MissingSource, BadRequest."""

    def spoken(self, options: TeacherOptions) -> Spoken:
        """Return which tokenizer it speaks, without loading it. Raises MissingSource."""

    def classes(self, options: TeacherOptions) -> list[str] | None:
        """Return the names of its classes in the order of its scores, without loading it; None: it does not say."""

    def notes(self, options: TeacherOptions) -> list[str]:
        """Return what a user should know that its files decide, such as how it is fed; without loading it."""

    def dimension(self, options: TeacherOptions) -> int | None:
        """Return how wide its vectors are, without loading it; None: it does not say. Raises BadTeacher: has none."""

    def wants_around(self, options: TeacherOptions) -> bool:
        """Return whether it expects what a tokenizer's template puts around a text."""

    def longest(self, options: TeacherOptions) -> int | None:
        """Return how many tokens of a text it was made to read; None: it does not say."""

    def check_files(self, options: TeacherOptions, dataset: DatasetSpec) -> None:
        """Check what `load` would find wrong in its files for a dataset, as far as no value of a weight is needed.

        A build does it before its first row is read. Raises BadWeights, BadTeacher, MissingSource.
        """

    def import_libraries(self) -> None:
        """Import what a worker has that loads it: its memory is bounded. Raises BadRequest: an extra is missing."""

    def load(self, options: TeacherOptions) -> nn.Module:
        """Return the model with its weights, on the CPU."""


KINDS: dict[str, Kind] = {
    "factory": factory,
    "student": student,
    "transformers": transformers,
    "onnx": onnx,
    "exported": exported,
    "torchscript": exported,
    "timm": zoo,
    "torchvision": zoo,
    "sklearn": sklearn,
}
