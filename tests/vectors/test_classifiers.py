"""Classifiers of transformers as teachers: their classes by name, their own normalisation of images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from storage.cache import Cache
from storage.errors import BadRequest, StillroomError
from storage.inputs.texts import ids_and_mask, pad
from storage.language.answering import TextClassifier
from tests.teacher_cache.toys import build, write_digits, write_job
from tests.texts.toys import texts
from tests.vectors.toys import bert_tokenizer, encoder_folder

NAMES = {"0": "plant", "1": "fish", "2": "fowl"}  # another order than the dataset's, which sorts them
TEACHER = '[[teacher]]\nname = "bert"\nkind = "transformers"\npath = "bert"\nbatch_size = 7\n'


def labelled(folder: Path) -> str:
    lines = [json.dumps({"label": label, "text": text}) for label, text in texts(24)]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    (folder / "tokenizer.json").write_bytes(bert_tokenizer())
    return (
        '[[dataset]]\nname = "texts"\nkind = "text"\npath = "texts.jsonl"\ncolumn = "text"\nlabel = "label"\n'
        'length = 14\ntokenizer = "tokenizer.json"\nadd_special_tokens = true\n'
    )


def classifier(folder: Path, names: dict[str, str]) -> Path:
    path = encoder_folder(folder / "bert", "AutoModelForSequenceClassification", sentences=False, num_labels=len(names))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"id2label": names}))
    return path


def test_a_classifier_of_texts_has_its_classes_matched_by_name(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(classifier(tmp_path, NAMES)).eval()
    assert build(write_job(tmp_path, labelled(tmp_path), TEACHER)).exit_code == 0
    cache = Cache.open(str(tmp_path / "cache"))
    tokens, mask = ids_and_mask(pad(cache.read_ragged("texts", 0)))
    with torch.inference_mode():
        logits_BC = model(input_ids=tokens, attention_mask=mask.long()).logits
    order = [[*NAMES.values()].index(name) for name in cache.dataset("texts").classes]
    stored = torch.from_numpy(cache.read_targets("texts", "bert", 0)["logits"])
    assert torch.allclose(stored, logits_BC[:, order], atol=1e-5)


@pytest.mark.parametrize("padding", [49, 0, -1])
def test_a_classifier_on_a_causal_model_looks_at_the_last_token_and_at_no_padding(padding: int) -> None:
    import transformers

    config = transformers.AutoConfig.for_model(
        "gpt2", n_embd=8, n_layer=1, n_head=2, vocab_size=50, n_positions=8, num_labels=3, pad_token_id=padding
    )
    model = TextClassifier(transformers.AutoModelForSequenceClassification.from_config(config).eval())
    rows_BL = torch.tensor([[7, 8, 9, 10], [4, 5, -1, -1]])
    if padding < 0:
        with pytest.raises(ValueError, match="no padding token"):
            model(*ids_and_mask(rows_BL))
        return
    alone_C = model(*ids_and_mask(rows_BL[1:, :2]))[0]
    assert torch.allclose(model(*ids_and_mask(rows_BL))[1], alone_C, atol=1e-5)


def refused(folder: Path, names: dict[str, str], extra: str = "") -> StillroomError:
    classifier(folder, names)
    with pytest.raises(StillroomError) as raised:
        build(write_job(folder, labelled(folder), TEACHER + extra))
    return raised.value


def test_a_classifier_of_other_classes_is_refused_with_the_difference(tmp_path: Path) -> None:
    error = refused(tmp_path, NAMES | {"2": "bird"})
    assert isinstance(error, BadRequest)
    assert "unknown: bird" in str(error.found)
    assert "missing: fowl" in str(error.expected)


def test_a_classifier_gives_no_vectors(tmp_path: Path) -> None:
    error = refused(tmp_path, NAMES, 'encoding = { kind = "vectors" }\n')
    assert error.found == 'encoding = { kind = "vectors" }'


def test_weights_that_are_pickles_are_refused(tmp_path: Path) -> None:
    path = classifier(tmp_path, NAMES)
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(StillroomError, match="pickles"):
        build(write_job(tmp_path, labelled(tmp_path), TEACHER))


def test_a_classifier_of_images_is_normalised_as_its_preprocessor_says(tmp_path: Path) -> None:
    import transformers

    config = transformers.AutoConfig.for_model(
        "vit", hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8,
        patch_size=4, num_channels=1, num_labels=10,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForImageClassification.from_config(config).eval()
    model.save_pretrained(tmp_path / "vit")
    said = {"do_normalize": True, "image_mean": [0.25], "image_std": [0.5], "do_rescale": True}
    (tmp_path / "vit/preprocessor_config.json").write_text(json.dumps(said))
    teacher = '[[teacher]]\nname = "vit"\nkind = "transformers"\npath = "vit"\n'
    assert build(write_job(tmp_path, write_digits(tmp_path, 20), teacher)).exit_code == 0
    cache = Cache.open(str(tmp_path / "cache"))
    (name,) = cache.catalogue().datasets
    pixels = torch.from_numpy(np.asarray(cache.read_inputs(name, 0))).float() / 255
    with torch.inference_mode():
        logits_BC = model(pixel_values=(pixels - 0.25) / 0.5).logits
    assert torch.allclose(torch.from_numpy(cache.read_targets(name, "vit", 0)["logits"]), logits_BC, atol=1e-5)
