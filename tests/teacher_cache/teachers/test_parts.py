"""Models of transformers in two parts: what body and head say together is what the model says, to rounding."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from storage.format.specs import DatasetSpec
from teacher_cache.teachers.loading import load_teacher
from teacher_cache.teachers.options import TeacherOptions
from teacher_cache.teachers.parts import Rewriting, find_parts

IDS, LENGTH = 48, 11
DATASET = DatasetSpec(name="d", source={}, classes=[], input_shape=(LENGTH,), input_dtype="int32", vocabulary=IDS)
SIZES = {
    "vocab_size": IDS,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "initializer_range": 0.5,
}


def saved(folder: Path, kind: str, **fields: Any) -> TeacherOptions:
    """Save a model of a few kilobytes and return a teacher of it."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES | fields)).save_pretrained(folder)
    return TeacherOptions(name="t", kind="transformers", path=folder)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "dtype": "bfloat16"}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2}),
        ("gemma2", {"final_logit_softcapping": 5.0}),
        ("granite", {"logits_scaling": 3.0}),
        ("cohere", {"logit_scale": 0.3}),
    ],
)
def test_a_model_of_transformers_is_in_two_parts_that_say_what_it_says(
    tmp_path: Path, kind: str, fields: dict[str, Any]
) -> None:
    teacher = load_teacher(saved(tmp_path, kind, **fields), torch.device("cpu"))
    tokens = torch.randint(0, IDS, (5, LENGTH), dtype=torch.int32)
    answered = torch.rand(5, LENGTH) < 0.4
    answered[2] = False
    heard = teacher.hear(tokens, answered, DATASET)
    assert tuple(heard.hidden.shape) == (int(answered.sum()), 16)  # no logits of any other position
    said = torch.cat([teacher.scores(heard.hidden[at], DATASET) for at in (slice(0, 3), slice(3, None))])
    with torch.inference_mode():
        whole = teacher.model(tokens.long()).logits.float()
    off = 1e-5 if "dtype" not in fields else 1e-2
    torch.testing.assert_close(said.float(), whole[answered], rtol=off, atol=off * float(whole.abs().max()))


def test_a_feature_of_what_is_behind_the_body_keeps_a_model_in_one_part(tmp_path: Path) -> None:
    options = saved(tmp_path, "llama")
    options = TeacherOptions.model_validate(
        options.model_dump(exclude_none=True) | {"features": {"f": {"layer": "lm_head", "pool": "none"}}}
    )
    teacher = load_teacher(options, torch.device("cpu"))
    tokens = torch.randint(0, IDS, (3, LENGTH), dtype=torch.int32)
    heard = teacher.hear(tokens, torch.ones(3, LENGTH, dtype=torch.bool), DATASET)
    assert heard.hidden.shape[-1] == IDS
    assert torch.equal(heard.features["f"], heard.hidden)


@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_a_head_of_one_matrix_writes_where_it_wrote_and_says_the_same(bias: bool) -> None:
    linear = nn.Linear(16, IDS, bias=bias)
    head, (one_ND, other_ND) = Rewriting(linear), torch.rand(2, 5, 16)
    said = (first := head(one_ND)).clone()
    second = head(other_ND[:3])
    assert second.data_ptr() == first.data_ptr()
    assert torch.equal(said, linear(one_ND[None])[0])
    assert torch.equal(second, linear(other_ND[None, :3])[0])


@torch.inference_mode()
def test_a_head_of_one_matrix_is_asked_about_no_sites_first() -> None:
    linear = nn.Linear(16, IDS)
    head = Rewriting(linear)
    assert head(torch.empty(0, 16)).shape == (0, IDS)
    rows_ND = torch.rand(2, 16)
    assert torch.equal(head(rows_ND), linear(rows_ND[None])[0])


def _huge_pages_are_given() -> bool:
    given = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return given.exists() and "[never]" not in given.read_text()


@pytest.mark.skipif(not _huge_pages_are_given(), reason="this kernel gives no huge pages")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_head_of_one_matrix_writes_to_memory_that_asks_for_huge_pages(dtype: torch.dtype) -> None:
    head = Rewriting(nn.Linear(4, 2**21, bias=False, dtype=dtype))  # 8 or 16 MB for two sites
    logits_NC = head(torch.rand(2, 4, dtype=dtype))
    maps = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)[1:]
    (holding,) = [
        each
        for each in maps
        if int(each.split("-")[0], 16) <= logits_NC.data_ptr() + 2**22 < int(re.split("[- ]", each)[1], 16)
    ]
    assert "hg" in holding.split("VmFlags:")[1].split()


@torch.inference_mode()
def test_a_head_that_is_more_than_a_matrix_is_called_itself() -> None:
    linear, rows_ND = nn.Linear(16, IDS), torch.rand(5, 16)
    head = Rewriting(linear)
    assert head.serves(rows_ND)
    assert not head.serves(rows_ND.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not head.serves(rows_ND)
    linear.register_forward_hook(lambda *_: None)
    assert not head.serves(rows_ND)


def test_a_head_whose_weights_are_codes_is_called_itself() -> None:
    class Codes(torch.Tensor):
        """Weights of a quantiser, as torchao's: of a type of floats, and taken by the layer alone."""

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "") in ("mm", "addmm", "new_empty"):
                raise NotImplementedError(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    body, head = nn.Embedding(IDS, 4), nn.Linear(4, IDS, bias=False)
    head.weight = nn.Parameter(torch.randn(IDS, 4).as_subclass(Codes), requires_grad=False)
    model = nn.Sequential(OrderedDict(body=body, head=head)).eval()
    with torch.inference_mode():
        parts = find_parts(model, lambda part: part(torch.arange(5)[None]), ())
    assert parts is not None
    assert parts.rewriting is None
