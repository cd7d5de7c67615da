"""Builds of vectors: what is stored and promised, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache
from storage.cache.verify import verify
from storage.encodings import VectorEncoding
from storage.errors import BadRequest, BadTeacher, StillroomError
from storage.inputs.texts import ids_and_mask, pad
from teacher_cache.building.survey import prepare_build
from tests.teacher_cache.toys import build, write_job
from tests.vectors.toys import LENGTH, WIDTH, bag_teacher, bert_tokenizer, encoder_folder, vector_cache, vector_dataset

DTYPES = ("fp32", "fp16", "int8")
AROUND = "add_special_tokens = true"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    teachers = [bag_teacher(f"bag-{dtype}", dtype=dtype) for dtype in DTYPES]
    return vector_cache(tmp_path_factory.mktemp("vectors"), *teachers)


def stored(cache: Cache, teacher: str, shard: int = 0) -> torch.Tensor:
    """Return what is decoded of a shard's vectors."""
    spec = cache.teacher("texts", teacher)
    read = cache.read_targets("texts", teacher, shard, names=spec.encoding.array_names(()))
    arrays = {name: torch.from_numpy(np.asarray(values)) for name, values in read.items()}
    vectors_BD: torch.Tensor = spec.encoding.decode(arrays, spec.num_classes).vectors_BD  # type: ignore[attr-defined]
    return vectors_BD


def words(cache: Cache, shard: int = 0) -> torch.Tensor:
    """Return the mean of the words' vectors of each row, as the toy teacher has them."""
    words_VD = torch.randn(600, WIDTH, generator=torch.Generator().manual_seed(0))
    return torch.stack([words_VD[torch.from_numpy(row).long()].mean(0) for row in cache.read_ragged("texts", shard)])


@pytest.mark.parametrize(("dtype", "off"), [("fp32", 1e-6), ("fp16", 2e-3), ("int8", 2e-2)])
def test_vectors_are_stored_as_the_teacher_gives_them(cache: Cache, dtype: str, off: float) -> None:
    assert (stored(cache, f"bag-{dtype}") - words(cache)).abs().max() < off


def test_int8_rounds_to_half_a_step_of_the_largest_number() -> None:
    encoding, vectors_BD = VectorEncoding(dtype="int8"), torch.tensor([[1.27, -0.634, 0.0], [0.0, 0.0, 0.0]])
    one = torch.zeros(2, dtype=torch.int64)
    arrays = encoding.encode(vectors_BD, num_classes=3, labels_B=one - 1, keys_B=one)
    assert arrays["vectors"].tolist() == [[127, -63, 0], [0, 0, 0]]
    assert (encoding.decode(arrays, 3).vectors_BD - vectors_BD).abs().max() <= 0.005


def test_a_promise_of_vectors_has_a_dimension_and_no_classes(cache: Cache) -> None:
    promise = json.loads(cache.objects.get("texts/bag-fp16/teacher.json"))
    assert (promise["dimension"], promise["uses"]) == (WIDTH, ["vector_targets"])
    assert "num_classes" not in promise
    spec = cache.dataset("texts")
    assert (spec.task, spec.classes, spec.num_classes) == ("vector", [], 0)
    assert cache.teacher("texts", "bag-fp16").num_classes == WIDTH


def test_a_cache_of_vectors_is_verified_and_has_no_top_class(cache: Cache) -> None:
    assert verify(cache).bad == ()
    samples = cache.samples().of("texts", ["bag-fp32"])
    assert samples["bag-fp32_top"].null_count() == samples["label"].null_count() == len(samples)


@pytest.mark.parametrize(
    ("teacher", "error", "found"),
    [
        (bag_teacher(width=WIDTH + 1), BadTeacher, f"{WIDTH + 1} numbers"),
        (bag_teacher().replace(f"dimension = {WIDTH}\n", ""), BadRequest, None),
        (bag_teacher().replace('kind = "vectors", ', ""), BadRequest, 'encoding = { kind = "dense" }'),
    ],
    ids=["another width", "no width", "scores of classes"],
)
def test_a_teacher_that_gives_no_such_vectors_is_refused(
    tmp_path: Path, teacher: str, error: type[StillroomError], found: str | None
) -> None:
    with pytest.raises(error) as raised:
        build(write_job(tmp_path, vector_dataset(tmp_path, 8), teacher))
    assert raised.value.found == found


def test_vectors_of_a_dataset_with_classes_are_refused(tmp_path: Path) -> None:
    dataset = vector_dataset(tmp_path, 8).replace('task = "vector"', 'task = "text_classification"\nclasses = ["a"]')
    with pytest.raises(BadRequest, match="asks for: 1 classes"):
        build(write_job(tmp_path, dataset, bag_teacher()))
    with pytest.raises(BadRequest, match="asks for classes"):
        build(write_job(tmp_path, dataset, bag_teacher().replace('kind = "vectors"', 'kind = "dense"')))


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("encoder")
    encoder_folder(folder / "bert")
    teacher = '[[teacher]]\nname = "bert"\nkind = "transformers"\npath = "bert"\nbatch_size = 7\n'
    first = teacher.replace('"bert"\nkind', '"first"\nkind') + 'pooling = "cls"\nnormalize = false\n'
    encoding = 'encoding = { kind = "vectors" }\n'
    return vector_cache(folder, teacher + encoding, first + encoding, extra=AROUND)


def test_texts_have_what_the_template_puts_around_them_within_their_length(encoded: Cache) -> None:
    from tokenizers import Tokenizer

    ids = {name: Tokenizer.from_str(bert_tokenizer().decode()).token_to_id(name) for name in ("[CLS]", "[SEP]")}
    rows = [row.tolist() for row in encoded.read_ragged("texts", 0)]
    assert {row[0] for row in rows} == {ids["[CLS]"]}
    assert {row[-1] for row in rows} == {ids["[SEP]"]}
    assert max(map(len, rows)) <= LENGTH


def test_an_encoder_pools_and_normalises_as_its_folder_or_the_job_says(encoded: Cache, tmp_path: Path) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(encoder_folder(tmp_path / "bert")).eval()
    rows = encoded.read_ragged("texts", 0)
    tokens, mask = ids_and_mask(pad(rows))
    with torch.inference_mode():
        hidden_BLD = model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    mean_BD = (hidden_BLD * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    expected = {"bert": torch.nn.functional.normalize(mean_BD, dim=1), "first": hidden_BLD[:, 0]}
    for name, vectors_BD in expected.items():
        assert torch.allclose(stored(encoded, name), vectors_BD, atol=1e-5), name
    answers = json.loads(encoded.objects.get("texts/bert/teacher.json"))["model"]["answers"]
    assert answers == {"kind": "embedding", "pooling": "mean", "normalize": True}


def test_a_text_that_is_longer_than_its_folder_says_is_told(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path / "bert")
    teacher = '[[teacher]]\nname = "bert"\nkind = "transformers"\npath = "bert"\nencoding = { kind = "vectors" }\n'
    job = write_job(tmp_path, vector_dataset(tmp_path, 8, extra=AROUND), teacher)

    def told(**says: object) -> str:
        (folder / "sentence_bert_config.json").write_text(json.dumps(says))
        return "\n".join(prepare_build(read_job(job, CacheJob).request(job)).notes)

    assert f"cut at {LENGTH - 1} tokens, and those of texts have up to {LENGTH}" in told(max_seq_length=LENGTH - 1)
    assert f"length = {LENGTH - 1} in [[dataset]] texts" in told(max_seq_length=LENGTH - 1)
    assert "cut at" not in told(max_seq_length=LENGTH, do_lower_case=False)
    assert "lower" not in told(max_seq_length=LENGTH, do_lower_case=False)
    assert "texts are tokenised as they are: lower them first" in told(do_lower_case=True)


def refused(folder: Path, extra: str = AROUND, of_teacher: str = "", **options: Any) -> StillroomError:
    encoder_folder(folder / "bert", **options)
    teacher = f'[[teacher]]\nname = "bert"\nkind = "transformers"\npath = "bert"\n{of_teacher}\n'
    with pytest.raises(StillroomError) as raised:
        build(write_job(folder, vector_dataset(folder, 8, extra=extra), teacher + 'encoding = { kind = "vectors" }\n'))
    return raised.value


def test_an_encoder_wants_the_special_tokens_that_it_was_trained_with(tmp_path: Path) -> None:
    assert refused(tmp_path, extra="").do == "add_special_tokens = true in [[dataset]] texts"


def test_an_encoder_of_which_nobody_says_how_it_is_pooled_is_refused(tmp_path: Path) -> None:
    assert "pooling = " in str(refused(tmp_path, sentences=False).do)


def test_a_module_that_is_not_done_here_is_refused(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path / "bert")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, {"type": "a.Dense", "path": "3_Dense"}]))
    teacher = '[[teacher]]\nname = "bert"\nkind = "transformers"\npath = "bert"\nencoding = { kind = "vectors" }\n'
    with pytest.raises(BadTeacher) as raised:
        build(write_job(tmp_path, vector_dataset(tmp_path, 8, extra=AROUND), teacher))
    assert "Dense (3_Dense)" in str(raised.value.found)
