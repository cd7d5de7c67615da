"""The ways to make a student of a teacher, one file each, and the table of them.

copying.py   all blocks or some, as wide as they are or narrower
prune.py     fewer units: which stay, and a network of those
lowrank.py   layers as two of lower rank
quantize.py  weights as int8 codes, after training

and what they share:

blocks.py    whole blocks: found, scored, left out
coupled.py   which units stand and fall together, through torch-pruning
perceptrons.py  neurons of models of transformers, by the names of their layers
scores.py    which units matter: by weights, gradients, activations, or none
slices.py    the tensors of those that stay
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from teacher_cache.making.subject import Subject
from teacher_cache.making.ways.copying import copy_of
from teacher_cache.making.ways.lowrank import lowrank
from teacher_cache.making.ways.prune import prune
from teacher_cache.making.ways.quantize import quantize

if TYPE_CHECKING:
    from student_train.students import Student

WAYS: dict[str, Callable[[Subject, Any], tuple[Student, list[str]]]] = {
    "copy": copy_of,
    "prune": prune,
    "lowrank": lowrank,
    "quantize": quantize,
}
"""What each makes of a teacher as it is: a student, and in words what is to be told of it."""
