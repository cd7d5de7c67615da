"""Worked examples in docstrings: each one is run, so that none of them lies."""

from __future__ import annotations

import doctest
import importlib

import pytest

from tests.house import ROOMS, modules

WITH_EXAMPLES = [name for room in ROOMS for name, path in modules(room).items() if ">>> " in path.read_text()]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_of_a_module_are_true(module: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(module.removesuffix(".__init__")))
    assert failed == 0
    assert tried > 0
