"""A student as a file of each format, and how that file is run again."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from storage.errors import BadRequest, missing_extra
from student_train.students import Student, load_student, save_student
from student_train.using.answering import ONNX_FILE, PT2_FILE, load_onnx, of_student

PREPROCESSING_FILE = "preprocessing.json"
TRIED = (2, 7)  # rows, and items of a row of its own length, that a network is traced with: sizes that nothing else has


class Written(NamedTuple):
    """What was written.

    Attributes:
        kind: what it is, in words.
        library: who loads it, as the Hub calls it.
        logits: of inputs as `Inputs.arguments` gives them, from what was written and nothing else.
        use: how it is used, as Markdown.
    """

    kind: str
    library: str
    logits: Callable[[Tensor], Tensor]
    use: str


def write_plain(student: Student, folder: Path, said: dict[str, str]) -> Written:
    """Write a student's own two files, which `load_student` and every reader of safetensors load."""
    save_student(folder, student.blueprint, student.state_dict(), student.tokenizer)
    architecture = student.blueprint.architecture
    own = architecture if ":" in architecture else None
    logits = of_student(load_student(folder, own), student.blueprint.architecture).logits
    named = "" if own is None else f', "{own}"'
    use = f'```python\nfrom student_train.students import load_student\n\nstudent = load_student("."{named})\n```\n'
    return Written("safetensors", "stillroom", logits, use)


def write_onnx(student: Student, folder: Path, said: dict[str, str]) -> Written:
    """Write `model.onnx`, with a dynamic number of rows, and of tokens in a row.

    Raises:
        BadRequest: a package is missing; or the network cannot be traced.
    """
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise missing_extra("student export --format onnx", f"no {', '.join(missing)}", "onnx")
    arguments, shapes = _tried(student)

    def convert() -> Any:
        return torch.onnx.export(
            student,
            arguments,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=_names(arguments),
            output_names=["logits"],
            verbose=False,
        )

    program = _traced(convert, student, "ONNX")
    program.model.metadata_props.update(said)
    program.save(str(folder / ONNX_FILE))
    return Written("ONNX model", "onnx", load_onnx(folder / ONNX_FILE).logits, onnx_use(student, ONNX_FILE))


def write_pt2(student: Student, folder: Path, said: dict[str, str]) -> Written:
    """Write `model.pt2`, PyTorch's exported program. Raises BadRequest: the network cannot be traced."""
    arguments, shapes = _tried(student)
    program = _traced(lambda: torch.export.export(student, arguments, dynamic_shapes=shapes), student, "torch.export")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a library about itself
        whole = BytesIO()  # a disk that is full would end the process in torch's own writer
        torch.export.save(program, whole, extra_files=said)
        (folder / PT2_FILE).write_bytes(whole.getbuffer())
        again = torch.export.load(folder / PT2_FILE).module()
    made_of = student.blueprint.made_of
    use = (
        "```python\nimport torch\n\n"
        f'model = torch.export.load("{PT2_FILE}").module()  # this can run code: load it from whom you trust\n```\n'
    )
    return Written("exported program", "pytorch", lambda inputs: again(*made_of.spread(inputs)).float(), use)


def onnx_use(student: Student, name: str) -> str:
    """Return how an ONNX file is used without torch, as Markdown."""
    inputs = " and ".join(f"`{each}`" for each in _names(_tried(student)[0]))
    return (
        "```python\nimport json\nimport onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("{name}")\n'
        'about = json.loads(session.get_modelmeta().custom_metadata_map["stillroom.preprocessing"])\n```\n\n'
        f"It takes {inputs}, of any number of rows, and gives `logits`{_told(student)}; "
        "`about` says how a sample becomes an input.\n"
        f"Or, with Stillroom at hand: `student predict {name} INPUTS`.\n"
    )


def _told(student: Student) -> str:
    """Return in words what the numbers called `logits` are, where they are none."""
    blueprint = student.blueprint
    if blueprint.asked.has_classes:
        return ""
    numbers = [f"`{name}`" for name in (blueprint.source or {}).get("target") or ()]
    of_vector = f"the numbers of a vector, {blueprint.num_classes:,}"
    return f", which are {', '.join(numbers)}, each in its own unit" if numbers else f", which are {of_vector}"


def _tried(student: Student) -> tuple[tuple[Tensor, ...], Any]:
    """Return arguments to trace a network with, and which of their axes may have any size."""
    blueprint = student.blueprint
    made_of, shape = blueprint.made_of, blueprint.input_shape
    rows, items = TRIED
    own_length = made_of.tokenised and shape[0] > 1
    inputs = made_of.blank(rows, (min(items, shape[0]),) if own_length else shape, torch.device("cpu"))
    arguments = made_of.spread(inputs)
    axes: dict[int, Any] = {0: torch.export.Dim("rows", min=1)}
    if own_length:
        axes[1] = torch.export.Dim("length", min=1, max=shape[0])
    shapes: list[Any] = [dict(axes) for _ in arguments]
    # `forward(inputs, *others)`: those behind the first are one argument
    return arguments, (shapes[0], tuple(shapes[1:])) if len(shapes) > 1 else tuple(shapes)


def _names(arguments: tuple[Tensor, ...]) -> list[str]:
    """Return what a model's arguments are called in a file."""
    return ["inputs", *("mask" if each.dtype == torch.bool else "positions" for each in arguments[1:])]


def _traced(convert: Callable[[], Any], student: Student, what: str) -> Any:
    """Return what a library makes of a network. Raises BadRequest: what failed, where, what to do."""
    import logging

    try:
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # that torchvision is not there
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a library about itself
                return convert()
        finally:
            logging.disable(before)
    except Exception as error:  # whatever a library says of a network that it cannot follow
        where = _where(error)
        raise BadRequest(
            f"the network of architecture {student.blueprint.architecture} cannot be followed by {what}",
            found=f"{type(error).__name__}: {_first_line(error)}" + ("" if where is None else f"\nin {where}"),
            expected="a forward pass that goes the same way whatever the values of its inputs are",
            do="torch.where in place of `if` over values, torch.cond, or no `.item()` and `.tolist()` in `forward`;\n"
            "or --format safetensors, which takes any network",
        ) from error


def _first_line(error: BaseException) -> str:
    root: BaseException = error
    while root.__cause__ is not None:  # the reason lies within what each layer made of it
        root = root.__cause__
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    return (lines[0] if lines else type(root).__name__)[:300]


def _where(error: BaseException) -> str | None:
    """Return the last line of somebody's own code that a failure went through."""
    ours = (str(Path(torch.__file__).parent), "onnxscript", str(Path(__file__).parents[2]), "site-packages")
    found: str | None = None
    root: BaseException | None = error
    while root is not None:
        for frame in traceback.extract_tb(root.__traceback__):
            if not any(own in frame.filename for own in ours) and frame.name == "forward":
                found = f"{frame.filename}, line {frame.lineno}: {frame.line}"
        root = root.__cause__
    return found
