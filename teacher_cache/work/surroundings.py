"""What a forward pass depends on beside the teacher's own files: a library, a driver, a processor.

Every commit of targets says it, so that an audit can name what has changed since.
"""

from __future__ import annotations

import platform
import re
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("numpy", "onnxruntime", "scikit-learn", "timm", "tokenizers", "torch", "torchvision", "transformers")
MODULES = {"scikit-learn": "sklearn"}  # where a package is imported by another name
DRIVER = Path("/proc/driver/nvidia/version")


def surroundings(device: str) -> dict[str, str]:
    """Return name and version of what answers here: those libraries alone that this process has loaded.

    Args:
        device: cpu or cuda.
    """
    found = {"python": platform.python_version(), "processor": _processor()}
    for name in LIBRARIES:
        if MODULES.get(name, name) in sys.modules:
            found[name] = _version(name)
    return found | (_of_gpu() if device == "cuda" else {})


@cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # put on the path by hand
        return "unknown"


@cache
def _processor() -> str:
    """Return the model of the processor, whose vector units decide how sums are rounded."""
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return platform.machine() if found is None else found[1]


def _of_gpu() -> dict[str, str]:
    import torch

    found = {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    try:
        driver = re.search(r"\d+(\.\d+)+", DRIVER.read_text())
    except OSError:  # of a container that does not show it
        driver = None
    return found | ({} if driver is None else {"driver": driver[0]})
