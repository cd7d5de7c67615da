"""Students: what one is, how it is built, and its files.

blueprint.py                   what a student is, as data
build.py                       a student from its blueprint; ARCHITECTURES has the built-in ones by name
cnn.py, encoder.py, gpt.py,
mlp.py, resnet.py              the built-in architectures, one file each
transformers.py                a causal language model of the transformers library, from its config
calling.py                     how a network is called: as one function, or in two parts
tensors.py                     the tensors of a student by name, each once
parts.py                       logits of a part of the sites at a time
remade/                        layers that are other than their architecture builds them, as data
starting/                      the weights that a student starts from, and an adapter on top of them
files.py                       the two files of a trained student, written and read

A student takes what `storage.inputs` gives a model, pixels with its normalisation as its first module,
so that a trained student is a valid teacher: `teacher_cache` imports this module and nothing else of this room.
"""

from student_train.students.blueprint import Blueprint
from student_train.students.build import ARCHITECTURES, Student, build_student
from student_train.students.files import check_trusted, check_written, load_student, read_blueprint, save_student
from student_train.students.remade.changes import Change, Dropped, Factored, Heads, Int8, Resized
from student_train.students.remade.factors import full_rank, is_table
from student_train.students.remade.int8 import codes_of, step_of
from student_train.students.remade.products import in_floats, is_product, products_of
from student_train.students.remade.rebuild import rebuild, settled, size_of
from student_train.students.remade.size import Size, flops_of_layers, size_of_student
from student_train.students.tensors import moved, shared_layers
from student_train.students.transformers import embedded

__all__ = [
    "ARCHITECTURES",
    "Blueprint",
    "Change",
    "Dropped",
    "Factored",
    "Heads",
    "Int8",
    "Resized",
    "Size",
    "Student",
    "build_student",
    "check_trusted",
    "check_written",
    "codes_of",
    "embedded",
    "flops_of_layers",
    "full_rank",
    "in_floats",
    "is_product",
    "is_table",
    "load_student",
    "moved",
    "products_of",
    "read_blueprint",
    "rebuild",
    "save_student",
    "settled",
    "shared_layers",
    "size_of",
    "size_of_student",
    "step_of",
]
