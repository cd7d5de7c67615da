"""A `gpt` as transformers' GPT-2: the same function, but for attention that stops at the end of a document."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from storage.language.model_folder import import_transformers
from student_train.students import Student
from student_train.students.gpt import Gpt

LAYERS = {  # of a block: there and here, and whether a matrix lies transposed there
    "ln_1": ("norm1", False),
    "attn.c_attn": ("attention.queries_keys_values", True),
    "attn.c_proj": ("attention.out", True),
    "ln_2": ("norm2", False),
    "mlp.c_fc": ("perceptron.into", True),
    "mlp.c_proj": ("perceptron.out", True),
}
STOPS_AT = (
    "attention of this student stops at `end_of_text`, and that of GPT-2 does not: the two differ in rows of several "
    "documents"
)


def to_gpt2(student: Student, what: str) -> Any:
    """Return a student as a GPT2LMHeadModel. Raises BadRequest: `what` needs transformers, which is not installed."""
    library = import_transformers(what)
    network = student.network
    assert isinstance(network, Gpt)
    body, weights = network.body, network.state_dict()
    block: Any = body.blocks[0]
    config = library.GPT2Config(
        vocab_size=body.tokens.num_embeddings,
        n_positions=body.positions.num_embeddings,
        n_embd=body.tokens.embedding_dim,
        n_layer=len(body.blocks),
        n_head=block.attention.heads,
        activation_function="gelu_new",  # GELU by tanh
        layer_norm_epsilon=body.norm.eps,
        resid_pdrop=block.dropout.p,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings="head.weight" not in weights,
        bos_token_id=body.end_of_text,
        eos_token_id=body.end_of_text,
    )
    model = library.GPT2LMHeadModel(config)
    model.load_state_dict(_renamed(weights, len(body.blocks)))
    return model.eval()


def _renamed(weights: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    renamed = {
        "transformer.wte.weight": weights["body.tokens.weight"],
        "transformer.wpe.weight": weights["body.positions.weight"],
        "transformer.ln_f.weight": weights["body.norm.weight"],
        "transformer.ln_f.bias": weights["body.norm.bias"],
        "lm_head.weight": weights.get("head.weight", weights["body.tokens.weight"]),
    }
    for number in range(depth):
        for there, (here, turned) in LAYERS.items():
            for kind in ("weight", "bias"):
                tensor = weights[f"body.blocks.{number}.{here}.{kind}"]
                renamed[f"transformer.h.{number}.{there}.{kind}"] = tensor.T if turned and kind == "weight" else tensor
    return renamed
