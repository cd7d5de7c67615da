"""Models of any framework as teachers, by way of ONNX; what is wrong with a graph is said before anything is stored."""

from __future__ import annotations

import json
import os
import sysconfig
from pathlib import Path
from typing import Any

import magika
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

from storage.cache import Cache
from storage.errors import BadRequest, BadTeacher, BadWeights, MissingSource, StaleCache, StillroomError
from storage.format.specs import DatasetSpec
from teacher_cache.teachers.kinds.onnx_files import read_graph
from teacher_cache.teachers.loading import cached_teacher, load_teacher
from teacher_cache.teachers.model import Teacher
from teacher_cache.teachers.options import TeacherOptions
from tests.teacher_cache.teachers.onnx_toys import by_hand, save, save_beside, toy
from tests.teacher_cache.toys import Silent, build, digits, write_digits, write_job

CPU = torch.device("cpu")
MAGIKA = Path(magika.__file__).parent / "models/standard_v3_3"
DENSE = "jax2tf_get_logits_/pjit_get_logits_/MagikaV2/Dense_1/AddV2:0"  # its logits, before its softmax
DIGITS = DatasetSpec(name="d", source={}, classes=list("0123456789"), input_shape=(1, 8, 8), input_dtype="uint8")


def section(extra: str = 'output = "probabilities"', path: Path | str = "toy.onnx") -> str:
    return f'[[teacher]]\nname = "keras"\nkind = "onnx"\npath = "{path}"\nlayout = "nhwc"\n{extra}\n'


def load(path: Path, **fields: Any) -> Teacher:
    return load_teacher(TeacherOptions(**({"name": "keras", "kind": "onnx", "path": path} | fields)), CPU)


def start_and_end(content: bytes) -> list[int]:
    """Return what magika looks at of a file: its first and last 1,024 bytes, without blanks, filled up with 256."""
    start, end = content.lstrip()[:1024], content.rstrip()[-1024:]
    return [*start, *[256] * (1024 - len(start)), *[256] * (1024 - len(end)), *end]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A cache of magika's answers about files of Python's own library, and what it was asked."""
    folder = tmp_path_factory.mktemp("files")
    library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-d]*.py"))[:40]
    looked_at = np.array([start_and_end(file.read_bytes()) for file in library], np.int32)
    np.save(folder / "files.npy", looked_at)
    labels = json.loads((MAGIKA / "config.min.json").read_text())["target_labels_space"]
    job = write_job(
        folder,
        '[[dataset]]\nname = "files"\nkind = "arrays"\npath = "files.npy"\nrows_per_shard = 32\n'
        f"classes = {json.dumps(labels[::-1])}\n",  # by name, not by place
        f'[[teacher]]\nname = "magika"\nkind = "onnx"\npath = "{MAGIKA}/model.onnx"\noutput = "probabilities"\n'
        f'features = {{ dense = {{ layer = "{DENSE}" }} }}\nclasses = {json.dumps(labels)}\nbatch_size = 16\n',
    )
    build(job)
    return folder / "cache", looked_at


def test_the_soft_targets_of_magika_are_what_it_says_of_files(files: tuple[Path, np.ndarray]) -> None:
    cache, looked_at = Cache.open(str(files[0])), files[1]
    session = onnxruntime.InferenceSession(MAGIKA / "model.onnx")
    said = np.concatenate([session.run(None, {"bytes": rows})[0] for rows in np.split(looked_at, [16, 32])])
    stored = np.concatenate([cache.read_targets("files", "magika", shard)["logits"] for shard in (0, 1)])
    assert np.abs(np.exp(stored[:, ::-1]) - said).max() < 1e-6
    assert cache.dataset("files").classes[stored.argmax(1)[0]] == "python"


def test_an_inner_tensor_of_magika_is_a_feature(files: tuple[Path, np.ndarray]) -> None:
    targets = Cache.open(str(files[0])).read_targets("files", "magika", 0, names=("logits", "feature/dense"))
    dense, logits = torch.tensor(targets["feature/dense"]), torch.tensor(targets["logits"])
    assert torch.allclose(dense.float().log_softmax(1), logits.flip(1), atol=0.05)  # the feature is stored in fp16


@pytest.mark.parametrize("batch", ["rows", 7, -1], ids=["any batch", "a fixed batch", "a batch of −1"])
def test_a_graph_with_the_channels_last_and_a_softmax_gives_logits(tmp_path: Path, batch: int | str) -> None:
    save(tmp_path, batch=batch)
    watcher = Silent()
    build(
        write_job(tmp_path, write_digits(tmp_path, 20), section('output = "probabilities"\nbatch_size = 16')),
        watcher=watcher,
    )
    images, _ = digits(20)
    logits, _ = by_hand(images.transpose(0, 2, 3, 1).astype(np.float32) / 255)
    expected = torch.tensor(logits).log_softmax(1)
    stored = [Cache.open(str(tmp_path / "cache")).read_targets("digits", "keras", shard)["logits"] for shard in (0, 1)]
    assert torch.allclose(torch.tensor(np.concatenate(stored)), expected, atol=1e-4)
    filled = "note: teacher keras: its graph takes 7 rows at a time: the last of a batch are filled up with zeros"
    assert (filled in watcher.notes) == (batch == 7)


def test_pixels_are_given_as_bytes_where_a_model_has_its_own_scaling(tmp_path: Path) -> None:
    save(tmp_path, scale=1 / 255)
    build(write_job(tmp_path, write_digits(tmp_path, 8), section('output = "probabilities"\npixels = "bytes"')))
    images, _ = digits(8)
    expected = torch.tensor(by_hand(images.transpose(0, 2, 3, 1).astype(np.float32) / 255)[0]).log_softmax(1)
    stored = Cache.open(str(tmp_path / "cache")).read_targets("digits", "keras", 0)["logits"]
    assert torch.allclose(torch.tensor(stored), expected, atol=1e-4)


def test_probabilities_that_are_not_named_so_are_refused_with_what_to_do(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(BadTeacher, match="returns probabilities") as refused:
        build(write_job(tmp_path, write_digits(tmp_path, 20), section("")))
    assert 'output = "probabilities"' in str(refused.value)


def test_logits_that_are_named_probabilities_are_refused(tmp_path: Path) -> None:
    save(tmp_path, softmax=False)
    with pytest.raises(BadTeacher, match="returns no probabilities") as refused:
        build(write_job(tmp_path, write_digits(tmp_path, 20), section()))
    assert 'output = "logits"' in str(refused.value)


def test_a_probability_of_zero_is_a_small_one_and_not_never(tmp_path: Path) -> None:
    path = save(tmp_path, scale=1e4)  # so sure that most classes have exactly none
    teacher = load(path, layout="nhwc", output="probabilities")
    images, _ = digits(4)
    logits, _ = teacher(torch.from_numpy(images), DIGITS)
    assert logits.min() == torch.tensor(torch.finfo(torch.float32).tiny).log()
    assert logits.isfinite().all()


def test_features_are_asked_for_alone(tmp_path: Path) -> None:
    save(tmp_path, outputs=("probabilities", "logits"))
    extra = 'encoding = { kind = "none" }\nfeatures = { hidden = { layer = "model/hidden:0", dtype = "fp32" } }'
    build(write_job(tmp_path, write_digits(tmp_path, 8), section(extra)))
    images, _ = digits(8)
    expected = by_hand(images.transpose(0, 2, 3, 1).astype(np.float32) / 255)[1]
    stored = Cache.open(str(tmp_path / "cache")).read_targets("digits", "keras", 0, names=("feature/hidden",))
    assert np.allclose(stored["feature/hidden"], expected, atol=1e-5)


@pytest.mark.parametrize("batch", ["rows", 4])
def test_a_tensor_with_other_rows_than_the_batch_is_no_feature(tmp_path: Path, batch: int | str) -> None:
    model = toy(batch=batch)
    model.graph.initializer.extend([numpy_helper.from_array(np.array([-1, 8]), "each")])
    model.graph.node.append(helper.make_node("Reshape", ["images", "each"], ["tokens"]))  # eight for each row
    onnx.save(model, tmp_path / "toy.onnx")
    teacher = load(tmp_path / "toy.onnx", layout="nhwc", output="probabilities", features={"f": {"layer": "tokens"}})
    with pytest.raises(BadTeacher, match="feature f of teacher keras is not one tensor with a row for each sample"):
        teacher(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), DIGITS)


def test_weights_in_a_file_beside_the_graph_are_part_of_the_promise(tmp_path: Path) -> None:
    path = save_beside(tmp_path)
    options = TeacherOptions(name="keras", kind="onnx", path=path, layout="nhwc", output="probabilities")
    promise = options.promise(10)
    assert [*promise.model["weights"]] == ["toy.data"]
    first = cached_teacher(options.model_dump_json(), promise.model_dump_json(), "cpu")
    images = torch.from_numpy(digits(4)[0]).float() / 255
    assert np.allclose(first.model(images).numpy().sum(1), 1, atol=1e-5)
    data = bytearray((tmp_path / "toy.data").read_bytes())
    data[-1] ^= 1
    (tmp_path / "toy.data").write_bytes(data)
    cached_teacher.cache_clear()
    with pytest.raises(StaleCache):
        cached_teacher(options.model_dump_json(), promise.model_dump_json(), "cpu")
    assert load(path, layout="nhwc").weights != first.weights


def test_weights_that_lead_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    inside = tmp_path / "model"
    inside.mkdir()
    for location in ("../toy.data", str(tmp_path / "toy.data"), ""):
        path = save_beside(inside, location)
        (inside / "toy.data").rename(tmp_path / "toy.data")
        with pytest.raises(BadWeights, match="lead out of its folder"):
            load(path)
    (inside / "toy.data").symlink_to(tmp_path / "toy.data")
    with pytest.raises(BadWeights, match="lead out of its folder") as refused:
        load(save_beside_kept(inside))
    assert f"a link to {tmp_path}/toy.data" in str(refused.value)


def save_beside_kept(folder: Path) -> Path:
    """Return a toy whose weights are said to be in a file that is there already."""
    other = folder / "other"
    other.mkdir()
    path = folder / "toy.onnx"
    path.write_bytes(save_beside(other).read_bytes())
    return path


def test_missing_or_shortened_weights_are_named(tmp_path: Path) -> None:
    path = save_beside(tmp_path)
    os.truncate(tmp_path / "toy.data", 100)
    with pytest.raises(BadWeights, match="are cut off") as short:
        load(path)
    assert short.value.found == f"100 bytes in {tmp_path}/toy.data"
    (tmp_path / "toy.data").unlink()
    with pytest.raises(MissingSource, match="are missing") as missing:
        load(path)
    assert "toy.data" in str(missing.value)


def unknown_operator() -> onnx.ModelProto:
    model = toy()
    model.graph.node[3].op_type = "Unheard"
    return model


def two_inputs() -> onnx.ModelProto:
    model = toy()
    model.graph.input.append(helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, ["rows", 3]))
    return model


FAULTS: dict[str, tuple[onnx.ModelProto | bytes, type[StillroomError], str, str]] = {
    "an unknown operator": (unknown_operator(), BadTeacher, "does not take", "Unheard"),
    "two outputs": (toy(outputs=("probabilities", "logits")), BadTeacher, "has several outputs", "probabilities"),
    "no graph": (b"no graph", BadWeights, "is not an ONNX file", ""),
    "nothing": (b"", BadWeights, "is not an ONNX file", "a graph without any node"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_graph_is_told_when_it_is_loaded(tmp_path: Path, fault: str) -> None:
    content, error, what, found = FAULTS[fault]
    path = tmp_path / "toy.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    with pytest.raises(error, match=what) as refused:
        load(path, layout="nhwc")
    assert found in (refused.value.found or "")


def test_that_it_is_not_clear_which_output_is_meant_is_told_before_a_row_is_read(tmp_path: Path) -> None:
    save(tmp_path, outputs=("probabilities", "logits"))
    with pytest.raises(BadTeacher, match="has several outputs"):
        build(write_job(tmp_path, write_digits(tmp_path, 20), section()))
    assert not (tmp_path / "cache/digits").exists()


def test_that_it_is_not_clear_which_input_is_which_is_told_before_a_row_is_read(tmp_path: Path) -> None:
    onnx.save(two_inputs(), tmp_path / "toy.onnx")
    with pytest.raises(BadTeacher, match="has several inputs") as refused:
        build(write_job(tmp_path, write_digits(tmp_path, 20), section()))
    assert refused.value.found == "images (rows, 8, 8, 1), more (rows, 3)"
    assert not (tmp_path / "cache/digits").exists()


def test_the_output_that_is_named_is_taken_and_one_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, outputs=("probabilities", "logits"))
    images = torch.from_numpy(digits(4)[0]).float() / 255
    logits = by_hand(images.permute(0, 2, 3, 1).numpy())[0]
    assert np.allclose(load(path, layout="nhwc", output_name="logits").model(images), logits, atol=1e-4)
    with pytest.raises(BadTeacher, match="has no tensor logit") as refused:
        load(path, layout="nhwc", output_name="logit")
    assert refused.value.found == "probabilities (…), logits (…)"
    with pytest.raises(BadTeacher, match="has no layer model/hidden"):
        load(path, layout="nhwc", output_name="logits", features={"h": {"layer": "model/hidden"}})


def test_inputs_of_another_shape_are_refused_with_the_layout_that_would_fit(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(BadTeacher, match="takes inputs of another shape") as refused:
        build(write_job(tmp_path, write_digits(tmp_path, 20), section().replace('layout = "nhwc"\n', "")))
    assert refused.value.do == 'layout = "nhwc" gives the channels last'
    assert refused.value.expected == "images (rows, 8, 8, 1)"


def test_a_folder_is_no_graph(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(BadRequest, match="is a folder, and no ONNX file") as refused:
        load(tmp_path)
    assert refused.value.found == "toy.onnx"


def test_its_threads_are_those_of_the_worker(tmp_path: Path) -> None:
    path, threads = save(tmp_path), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        session = load(path, layout="nhwc").model._session
    finally:
        torch.set_num_threads(threads)
    settings = session.get_session_options()
    assert (settings.intra_op_num_threads, settings.inter_op_num_threads) == (3, 1)


@pytest.mark.parametrize("key", ["session.intra_op.allow_spinning", "session.force_spinning_stop"])
def test_its_threads_are_not_sent_to_sleep(tmp_path: Path, key: str) -> None:
    """Asleep between operators, two take 1.2 times as long to answer; asleep between batches, 1.1 times."""
    session = load(save(tmp_path), layout="nhwc").model._session
    with pytest.raises(RuntimeError, match="does not have"):
        session.get_session_options().get_session_config_entry(key)


@pytest.mark.parametrize(
    ("fields", "mistake"),
    [
        ({"autocast": "bf16"}, "`autocast` is of torch"),
        ({"weights": "w.safetensors"}, "`weights` belongs to a `factory`"),
        ({"pixels": "bytes", "mean": [0.5], "std": [0.5]}, "`mean` and `std` are of pixels from 0 to 1"),
    ],
)
def test_options_that_would_do_nothing_are_refused(tmp_path: Path, fields: dict[str, Any], mistake: str) -> None:
    with pytest.raises(ValueError, match=mistake):
        TeacherOptions(name="keras", kind="onnx", path=tmp_path / "toy.onnx", **fields)


def test_a_graph_without_inputs_is_no_model(tmp_path: Path) -> None:
    value = helper.make_tensor("value", onnx.TensorProto.FLOAT, [1], [0.5])
    node = helper.make_node("Constant", [], ["y"], value=value)
    out = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    onnx.save(helper.make_model(helper.make_graph([node], "g", [], [out])), str(tmp_path / "m.onnx"))
    with pytest.raises(BadWeights) as caught:
        read_graph(tmp_path / "m.onnx")
    assert caught.value.found == "a graph without any input"


def test_onnxruntime_neither_goes_on_elsewhere_nor_says_so_on_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where it fails with an error of Python, or of a GPU, it would try the CPU by itself, and say so in print."""
    whole = save(tmp_path).read_bytes()
    path = tmp_path / "toy.onnx"
    for old, new, error, told in (  # no UTF-8
        (b"units", b"uni\xe5s", BadWeights, "is not an ONNX file"),
        (b"Relu", b"Re\xe5u", BadTeacher, "does not take"),
    ):
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(error, match=told):
            load(path, layout="nhwc", output="probabilities")
    assert "EP Error" not in "".join(capfd.readouterr())
