"""Students that are cut from an encoder of transformers: by `student make`, or by a job that names its layers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.files.cache_job import CacheJob
from jobs.files.reading import read_job
from storage.cache import Cache
from storage.errors import BadRequest
from storage.inputs.texts import ids_and_mask, pad
from storage.language.pooling import pooled_as
from student_train.running.train import train_students
from student_train.students import Student, load_student, size_of_student
from student_train.using.exporting.hub.transformers import export_transformers
from teacher_cache.making.make import Made, MakeRequest, make
from teacher_cache.making.sizes import Target
from teacher_cache.making.ways.copying import CopyOptions
from teacher_cache.making.ways.lowrank import LowRankOptions
from teacher_cache.making.ways.prune import PruneOptions
from teacher_cache.making.ways.quantize import QuantizeOptions
from tests.teacher_cache.toys import build, write_job
from tests.vectors.test_build import AROUND
from tests.vectors.test_classifiers import NAMES, classifier, labelled
from tests.vectors.test_classifiers import TEACHER as CLASSIFIER
from tests.vectors.toys import WIDTH, bag_teacher, encoder_folder, request, vector_dataset, vector_student

TEACHER = '[[teacher]]\nname = "bert"\nkind = "transformers"\npath = "bert"\nencoding = { kind = "vectors" }\n'
TABLE = "model.embeddings.word_embeddings"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small encoder, `bert`, a job and its whole cache; do not change it."""
    folder = tmp_path_factory.mktemp("cut")
    encoder_folder(folder / "bert")
    assert build(write_job(folder, vector_dataset(folder, extra=AROUND), TEACHER)).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def cache(folder: Path) -> Cache:
    return Cache.open(str(folder / "cache"))


def made(folder: Path, out: Path, way: str, options: Any) -> tuple[Made, Student]:
    job = folder / "job.toml"
    found = make(MakeRequest(read_job(job, CacheJob).request(job, device="cpu"), "bert", way, options, out, rows=40))
    return found, load_student(out)


def vectors(student: Student, cache: Cache, shard: int = 0) -> torch.Tensor:
    rows = pad(cache.read_ragged("texts", shard))
    with torch.inference_mode():
        vectors_BD: torch.Tensor = student(student.blueprint.made_of.arguments(rows))
    return vectors_BD


def test_a_copy_of_an_encoder_says_what_the_folder_says(folder: Path, cache: Cache, tmp_path: Path) -> None:
    from transformers import AutoModel

    found, student = made(folder, tmp_path / "out", "copy", CopyOptions(None, None, 1.0, "first"))
    tokens, mask = ids_and_mask(pad(cache.read_ragged("texts", 0)))
    with torch.inference_mode():
        model = AutoModel.from_pretrained(folder / "bert").eval()
        hidden_BLD = model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
    mean_BD = (hidden_BLD * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    torch.testing.assert_close(vectors(student, cache), torch.nn.functional.normalize(mean_BD, dim=1))
    assert found.agreement == pytest.approx(1.0)
    assert student.blueprint.tokenizer == cache.dataset("texts").tokenizer


def test_some_blocks_of_an_encoder_are_kept_and_learn_what_was_cached(
    folder: Path, cache: Cache, tmp_path: Path
) -> None:
    kept = CopyOptions(None, ("model.encoder.layer.1",), 1.0, "first")
    found, student = made(folder, tmp_path / "cut", "copy", kept)
    assert found.size.flops == pytest.approx(found.whole.flops / 2, rel=0.01)
    start = {"architecture": None, "options": {}, "start": str(tmp_path / "cut"), "learning_rate": 0.01}
    asked = vector_student(objective=[{"loss": "vector_cosine", "teacher": "bert"}], **start)
    (record,) = train_students(request(cache, tmp_path / "runs", asked)).records
    assert record.cosine > found.agreement
    assert load_student(tmp_path / "runs" / "small").blueprint.changes == student.blueprint.changes


def test_a_job_cuts_an_encoder_by_the_numbers_of_its_layers(folder: Path, cache: Cache, tmp_path: Path) -> None:
    asked = vector_student(
        architecture="transformers",
        path=str(folder / "bert"),
        options={"num_hidden_layers": 1},
        start={"layers": [1]},
        objective=[{"loss": "vector_cosine", "teacher": "bert"}],
        epochs=1,
        learning_rate=1e-9,
    )
    (record,) = train_students(request(cache, tmp_path / "runs", asked)).records
    assert record.status == "finished"
    cut = made(folder, tmp_path / "cut", "copy", CopyOptions(None, ("model.encoder.layer.1",), 1.0, "first"))[1]
    torch.testing.assert_close(vectors(load_student(tmp_path / "runs" / "small"), cache), vectors(cut, cache))


def test_the_table_of_words_becomes_two_of_lower_rank(folder: Path, cache: Cache, tmp_path: Path) -> None:
    options = LowRankOptions(Target("parameters", 0.7), None, "plain", (TABLE,))
    found, student = made(folder, tmp_path / "half", "lowrank", options)
    assert 0.5 * found.whole.parameters < found.size.parameters <= 0.7 * found.whole.parameters
    assert size_of_student(student).parameters == found.size.parameters
    table: Any = student.network.get_submodule(TABLE)
    assert table.first.weight.shape[1] == table.second.weight.shape[1] < WIDTH
    whole: Any = made(folder, tmp_path / "whole", "copy", CopyOptions(None, None, 1.0, "first"))[1]
    words_VD = whole.network.get_submodule(TABLE).weight.detach()
    kept_VD = (table.first.weight @ table.second.weight.T).detach()
    rank = table.first.weight.shape[1]
    left = torch.linalg.svdvals(words_VD)[rank:].square().sum().sqrt()  # what no table of that rank can say
    assert float((kept_VD - words_VD).norm()) == pytest.approx(float(left), rel=1e-3)


def test_a_table_costs_no_operations_and_stays_whole_where_those_are_counted(folder: Path, tmp_path: Path) -> None:
    found, _ = made(folder, tmp_path / "fast", "lowrank", LowRankOptions(Target("flops", 0.8), None, "plain"))
    assert f"left whole: {TABLE}, a Embedding" in found.told
    small, student = made(
        folder, tmp_path / "small", "lowrank", LowRankOptions(Target("parameters", 0.6), None, "plain")
    )
    assert TABLE in {change.layer for change in student.blueprint.changes}
    assert small.size.parameters <= 0.6 * small.whole.parameters


def test_an_encoder_in_int8_tells_what_stays_in_floats(folder: Path, tmp_path: Path) -> None:
    found, _ = made(folder, tmp_path / "int8", "quantize", QuantizeOptions("channel"))
    assert f"left in floats: {TABLE}, a Embedding" in found.told
    assert found.agreement > 0.99


def test_vectors_of_another_width_are_refused(folder: Path, cache: Cache, tmp_path: Path) -> None:
    shutil.copytree(folder / "bert", tmp_path / "bert")
    asked = vector_student(
        architecture="transformers",
        path=str(tmp_path / "bert"),
        options={"hidden_size": 2 * WIDTH},
        objective=[{"loss": "vector_cosine", "teacher": "bert"}],
    )
    with pytest.raises(BadRequest, match="of another width") as caught:
        train_students(request(cache, tmp_path / "runs", asked))
    assert (caught.value.found, caught.value.expected) == (f"{2 * WIDTH} wide", f"{WIDTH}")


@pytest.mark.parametrize("said", [{"pooling": "average"}, {"normalize": "no"}])
def test_an_embedding_that_is_made_in_no_known_way_is_refused(
    folder: Path, cache: Cache, tmp_path: Path, said: dict[str, str]
) -> None:
    asked = vector_student(
        architecture="transformers",
        path=str(folder / "bert"),
        options=said,
        objective=[{"loss": "vector_cosine", "teacher": "bert"}],
    )
    with pytest.raises(BadRequest, match="how an embedding is made") as caught:
        train_students(request(cache, tmp_path / "runs", asked))
    assert next(iter(said.values())) in str(caught.value.found)


def test_a_classifier_is_cut_with_its_classes_in_the_order_of_the_dataset(tmp_path: Path) -> None:
    classifier(tmp_path, NAMES)
    assert build(write_job(tmp_path, labelled(tmp_path), CLASSIFIER)).exit_code == 0
    found, student = made(tmp_path, tmp_path / "out", "copy", CopyOptions(None, None, 1.0, "first"))
    cache = Cache.open(str(tmp_path / "cache"))
    stored_BC = torch.from_numpy(cache.read_targets("texts", "bert", 0)["logits"])
    torch.testing.assert_close(vectors(student, cache), stored_BC, atol=1e-5, rtol=1e-4)
    assert student.classes == tuple(cache.dataset("texts").classes) != tuple(NAMES.values())
    assert found.agreement == 1.0


@pytest.mark.parametrize("extra", [AROUND, ""], ids=["with its template", "without"])
@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", False)])
def test_an_encoder_is_exported_as_a_folder_of_sentence_transformers(
    folder: Path, tmp_path: Path, extra: str, pooling: str, normalize: bool
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    dataset = vector_dataset(tmp_path, 260, extra=extra)
    assert build(write_job(tmp_path, dataset, bag_teacher())).exit_code == 0
    cache = Cache.open(str(tmp_path / "cache"))
    asked = vector_student(
        architecture="transformers",
        path=str(folder / "bert"),
        start=True,
        options={"pooling": pooling, "normalize": normalize},
        epochs=1,
    )
    train_students(request(cache, tmp_path / "runs", asked))
    found = export_transformers(tmp_path / "runs" / "small", tmp_path / "out")
    assert (found.kind, found.told[0][:24]) == ("BertModel", "vectors of 100 held rows")
    assert any(line.startswith("tokens of ") and line.endswith("the same") for line in found.told)
    texts = [json.loads(line)["text"] for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    library = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    said = torch.from_numpy(library.encode(texts[:128], batch_size=7))
    rows = torch.cat([vectors(load_student(tmp_path / "runs" / "small"), cache, shard) for shard in range(4)])
    torch.testing.assert_close(said, rows, atol=1e-5, rtol=1e-4)
    assert pooled_as(tmp_path / "out", None, None, wrong=BadRequest, where="") == (pooling, normalize)
    assert export_transformers(tmp_path / "runs" / "small", tmp_path / "out").done_before


def test_an_encoder_of_every_second_block_is_exported_as_a_smaller_folder(
    folder: Path, cache: Cache, tmp_path: Path
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    made(folder, tmp_path / "cut", "copy", CopyOptions(2, None, 1.0, "first"))
    asked = vector_student(
        architecture=None,
        options={},
        start=str(tmp_path / "cut"),
        objective=[{"loss": "vector_cosine", "teacher": "bert"}],
        epochs=1,
    )
    train_students(request(cache, tmp_path / "runs", asked))
    export_transformers(tmp_path / "runs" / "small", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 1
    texts = [json.loads(line)["text"] for line in (folder / "texts.jsonl").read_text().splitlines()]
    library = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    own = vectors(load_student(tmp_path / "runs" / "small"), cache)
    torch.testing.assert_close(torch.from_numpy(library.encode(texts[: len(own)])), own, atol=1e-5, rtol=1e-4)


def test_an_exported_tokenizer_that_would_make_other_tokens_is_refused(
    folder: Path, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = vector_student(
        architecture="transformers",
        path=str(folder / "bert"),
        options={},
        objective=[{"loss": "vector_cosine", "teacher": "bert"}],
        epochs=1,
    )
    train_students(request(cache, tmp_path / "runs", asked))
    monkeypatch.setattr("student_train.using.exporting.hub.encoders.tokenizer_files", bare)
    with pytest.raises(BadRequest, match="makes other tokens than the student's rows have"):
        export_transformers(tmp_path / "runs" / "small", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def bare(student: Student, files: dict[str, bytes]) -> dict[str, bytes]:
    """Return a tokenizer without its template."""
    tokenizer = json.loads(files["tokenizer.json"]) | {"post_processor": None}
    return files | {"tokenizer.json": json.dumps(tokenizer).encode()}


def test_a_classifier_of_texts_starts_from_a_folder_and_is_exported_as_one(tmp_path: Path) -> None:
    import transformers

    classifier(tmp_path, NAMES)
    assert build(write_job(tmp_path, labelled(tmp_path), CLASSIFIER)).exit_code == 0
    cache = Cache.open(str(tmp_path / "cache"))
    asked = vector_student(
        architecture="transformers",
        path=str(tmp_path / "bert"),
        start=True,
        options={},
        objective=[{"loss": "labels"}],
        epochs=1,
    )
    (record,) = train_students(request(cache, tmp_path / "runs", asked, validation="texts/train")).records
    assert record.status == "finished"
    found = export_transformers(tmp_path / "runs" / "small", tmp_path / "out")
    assert found.kind == "BertForSequenceClassification"
    assert found.told[0].startswith("logits of ")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tuple(model.config.id2label.values()) == tuple(cache.dataset("texts").classes)
    text = json.loads((tmp_path / "texts.jsonl").read_text().splitlines()[0])["text"]
    with torch.inference_mode():
        said_1C = model(**tokenizer([text], truncation=True, return_tensors="pt")).logits
    own_1C = vectors(load_student(tmp_path / "runs" / "small"), cache)[:1]
    torch.testing.assert_close(said_1C, own_1C, atol=1e-5, rtol=1e-4)


def test_heads_of_an_encoder_are_pruned(folder: Path, cache: Cache, tmp_path: Path) -> None:
    options = PruneOptions(Target("parameters", 0.98), "magnitude", 0, "heads")
    found, student = made(folder, tmp_path / "out", "prune", options)
    assert found.size.parameters < found.whole.parameters
    network: Any = student.network
    for layer in network.model.encoder.layer:
        assert layer.attention.self.query.weight.shape == (WIDTH // 2, WIDTH)  # one head of two
        assert layer.attention.output.dense.weight.shape == (WIDTH, WIDTH // 2)
    assert vectors(student, cache).shape[1] == WIDTH
