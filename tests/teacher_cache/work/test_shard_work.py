from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from storage.cache import Cache
from storage.errors import BadRequest, BadTeacher, LabelOutOfRange, MissingSource, StaleCache
from storage.format.shards import ShardKey
from storage.inputs.arguments import to_float
from tests.teacher_cache.conftest import Built
from tests.teacher_cache.toys import build, contents, digits, teacher_section, write_digits, write_job, write_teacher

ROWS, BATCH = 40, 10


def by_hand(built: Built, shard: int, layer: str = "") -> Tensor:
    """Return the output of the model, or of one of its layers, over one shard, batch by batch."""
    outputs: list[Tensor] = []
    hooked = built.model.get_submodule(layer)
    handle = hooked.register_forward_hook(lambda _module, _inputs, output: outputs.append(output.clone()))
    with torch.inference_mode():
        for batch in torch.from_numpy(built.cache.read_inputs("digits", shard)).split(BATCH):
            built.model(to_float(batch))
    handle.remove()
    return torch.cat(outputs)


def stored(built: Built, shard: int, name: str) -> np.ndarray[Any, Any]:
    return built.cache.read_targets("digits", "toy", shard, names=[name])[name]


def build_toy(
    folder: Path, *, rows: int = ROWS, marked: tuple[int, ...] = (), extra: str = "", **arguments: Any
) -> Any:
    write_teacher(folder, **arguments)
    job = write_job(folder, write_digits(folder, rows, marked), teacher_section(extra=extra, **arguments))
    return build(job)


@pytest.mark.parametrize("shard", [0, 2])
def test_soft_targets_are_the_bits_of_a_forward_by_hand(built: Built, shard: int) -> None:
    assert stored(built, shard, "logits").tobytes() == by_hand(built, shard).numpy().tobytes()


def test_a_pooled_feature_is_the_mean_over_positions(built: Built) -> None:
    expected = by_hand(built, 0, "norm").flatten(2).mean(dim=2)
    assert stored(built, 0, "feature/pooled").tobytes() == expected.numpy().tobytes()


def test_a_whole_feature_is_what_the_layer_returned_though_the_next_one_works_in_place(built: Built) -> None:
    whole = stored(built, 0, "feature/whole")
    assert (whole < 0).any()  # else the ReLU in place could not be told
    assert whole.tobytes() == by_hand(built, 0, "norm").numpy().tobytes()


def test_a_bf16_feature_is_stored_as_its_bits(built: Built) -> None:
    expected = by_hand(built, 0, "conv").to(torch.bfloat16).view(torch.uint16)
    assert np.array_equal(stored(built, 0, "feature/half"), expected.numpy())


def test_a_teacher_runs_in_evaluation_mode(built: Built) -> None:
    assert not built.model.training  # so forwards by hand are, and the bits above agree
    with torch.inference_mode():
        training = built.model.train()(to_float(torch.from_numpy(built.cache.read_inputs("digits", 0))))
    built.model.eval()
    assert not np.allclose(stored(built, 0, "logits"), training.numpy())


def test_the_statistics_of_a_row_follow_from_its_logits(built: Built) -> None:
    table = built.cache.samples().of("digits", ["toy"])
    logits = np.concatenate([stored(built, shard, "logits") for shard in range(3)]).astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = table["label"].to_numpy()
    assert table["toy_top"].to_list() == logits.argmax(axis=1).tolist()
    np.testing.assert_allclose(table["toy_top_probability"], probabilities.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(table["toy_entropy"], -(probabilities * np.log(probabilities)).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(
        table["toy_label_log_probability"], np.log(probabilities[np.arange(ROWS), labels]), rtol=1e-4
    )


def test_an_unlabelled_row_has_no_label_log_probability(tmp_path: Path) -> None:
    write_teacher(tmp_path)
    (tmp_path / "half.py").write_text(
        "import numpy as np\n"
        "class Half(list):\n"
        "    classes = [str(i) for i in range(10)]\n"
        "def make():\n"
        "    rows = [{'input': np.full((1, 8, 8), i, np.uint8)} | ({'label': 3} if i % 2 else {}) for i in range(4)]\n"
        "    return Half(rows)\n"
    )
    dataset = '[[dataset]]\nname = "digits"\nkind = "factory"\nfactory = "half.py:make"\n'
    build(write_job(tmp_path, dataset, teacher_section()))
    table = Cache.open(str(tmp_path / "cache")).samples().of("digits", ["toy"])
    assert table["toy_label_log_probability"].is_null().to_list() == [True, False, True, False]


def test_a_shard_run_again_on_a_cpu_has_the_same_bytes(built: Built) -> None:
    before = contents(built.folder / "cache")
    for teacher in (None, "toy"):
        built.cache.objects.delete(ShardKey("digits", teacher, "plain", 1).commit_path)
    assert contents(built.folder / "cache") != before
    build(built.job)
    assert contents(built.folder / "cache") == before


def test_autocast_makes_the_forward_pass_bf16_and_keeps_the_logits_float32(tmp_path: Path) -> None:
    model = write_teacher(tmp_path)
    build(write_job(tmp_path, write_digits(tmp_path, 16), teacher_section(extra='autocast = "bf16"')))
    cache = Cache.open(str(tmp_path / "cache"))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = model(to_float(torch.from_numpy(cache.read_inputs("digits", 0)))).float()
    logits = cache.read_targets("digits", "toy", 0)["logits"]
    assert logits.dtype == np.float32
    assert np.array_equal(logits, expected.numpy())


def test_inputs_are_normalised_as_the_job_says(tmp_path: Path) -> None:
    model = write_teacher(tmp_path)
    build(write_job(tmp_path, write_digits(tmp_path, 16), teacher_section(extra="mean = [0.25]\nstd = [0.5]")))
    cache = Cache.open(str(tmp_path / "cache"))
    with torch.inference_mode():
        expected = model((to_float(torch.from_numpy(cache.read_inputs("digits", 0))) - 0.25) / 0.5)
    assert np.array_equal(cache.read_targets("digits", "toy", 0)["logits"], expected.numpy())


def test_normalising_other_channels_than_the_inputs_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadTeacher) as caught:
        build_toy(tmp_path, extra="mean = [0.5, 0.5, 0.5]\nstd = [1.0, 1.0, 1.0]")
    assert caught.value.found == "`mean` and `std` of 3 channels"


@pytest.mark.parametrize("fault", ["nan", "inf"])
def test_logits_that_are_not_finite_refuse_their_shard_and_name_the_rows(tmp_path: Path, fault: str) -> None:
    report = build_toy(tmp_path, marked=(17, 21), fault=fault)
    assert (report.exit_code, len(report.refused)) == (3, 1)
    assert "digits/toy/plain/00001 is refused" in report.refused[0]
    assert "2 of 16 rows: 17, 21" in report.refused[0]
    assert Cache.open(str(tmp_path / "cache")).committed("digits", "toy") == {0, 2}


@pytest.mark.parametrize(("dtype", "refused"), [("fp16", 1), ("bf16", 0), ("fp32", 0)])
def test_logits_beyond_the_stored_precision_are_refused(tmp_path: Path, dtype: str, refused: int) -> None:
    report = build_toy(
        tmp_path, marked=(3,), extra=f'encoding = {{ kind = "dense", dtype = "{dtype}" }}', fault="large"
    )
    assert len(report.refused) == refused
    assert [text for text in report.refused if "overflows the stored precision" not in text] == []


def test_a_bf16_value_that_rounds_to_infinity_is_not_finite() -> None:
    from storage.encodings import DenseEncoding
    from teacher_cache.work.checks import finite_rows

    largest, keys_B = torch.tensor([[1.0, torch.finfo(torch.float32).max], [1.0, 2.0]]), torch.zeros(2).long()
    stored = DenseEncoding(dtype="bf16").encode(largest, num_classes=2, labels_B=keys_B, keys_B=keys_B)
    assert finite_rows(stored["logits"], bf16=True).tolist() == [False, True]


def test_probabilities_of_half_precision_whose_sums_are_off_one_are_none_of_logits() -> None:
    from storage.encodings import DenseEncoding
    from storage.format.specs import TeacherSpec
    from teacher_cache.work.checks import refuse_probabilities

    torch.manual_seed(0)
    rounded = (3 * torch.randn(64, 10)).bfloat16().softmax(1)
    assert (rounded.float().sum(1) - 1).abs().max() > 1e-3
    spec = TeacherSpec(name="half", model={}, num_classes=10, encoding=DenseEncoding(), features={})
    with pytest.raises(BadTeacher, match="returns probabilities"):
        refuse_probabilities(rounded, spec)


@pytest.mark.parametrize(
    ("arguments", "extra", "what"),
    [
        ({"fault": "probabilities"}, "", "teacher toy returns probabilities"),
        ({"classes": 7}, "", "teacher toy does not fit dataset digits"),
        ({"fault": "tuple"}, "", "teacher toy did not return logits"),
        ({"fault": "flat"}, "", "teacher toy did not return logits"),
        ({"fault": "one number"}, "", "teacher toy did not return logits"),
        ({"channels": 3}, "", "teacher toy failed on inputs of shape (16, 1, 8, 8)"),
        (
            {},
            'features.f = { layer = "unused" }',
            "feature f of teacher toy is not one tensor with a row for each sample",
        ),
        (
            {},
            'features.f = { layer = "halves" }',
            "feature f of teacher toy is not one tensor with a row for each sample",
        ),
    ],
    ids=[
        "probabilities",
        "classes",
        "tuple",
        "flat",
        "a loss",
        "channels",
        "a layer never called",
        "a layer that gives a tuple",
    ],
)
def test_a_teacher_that_breaks_its_promise_is_refused(
    tmp_path: Path, arguments: dict[str, Any], extra: str, what: str
) -> None:
    with pytest.raises(BadTeacher) as caught:
        build_toy(tmp_path, extra=extra, **arguments)
    assert caught.value.what == what


def test_a_layer_that_does_not_exist_is_answered_with_those_that_are_near(tmp_path: Path) -> None:
    with pytest.raises(BadTeacher) as caught:
        build_toy(tmp_path, extra='features.f = { layer = "conf" }')
    assert caught.value.what == "teacher toy has no layer conf"
    assert caught.value.expected is not None
    assert "conv" in caught.value.expected


def test_a_teacher_whose_files_change_during_a_build_is_noticed(tmp_path: Path) -> None:
    """Another file between planning and the first task, as on a worker that sees another disk."""
    from jobs.files.cache_job import CacheJob
    from jobs.files.reading import read_job
    from teacher_cache.building.build import run_build
    from teacher_cache.building.prepared import BuildRequest
    from teacher_cache.building.runners import run_inline
    from teacher_cache.building.survey import prepare_build
    from tests.teacher_cache.toys import Silent

    write_teacher(tmp_path)
    read = read_job(write_job(tmp_path, write_digits(tmp_path, 16), teacher_section()), CacheJob)
    plan = prepare_build(BuildRequest(read.cache, "job", tuple(read.dataset), tuple(read.teacher)))
    write_teacher(tmp_path, seed=1)
    with pytest.raises(StaleCache) as caught:
        run_build(plan, run_inline, Silent())
    assert caught.value.what == "teacher toy is not the one that the cache was promised"


def test_a_label_outside_the_classes_is_refused(tmp_path: Path) -> None:
    dataset = write_digits(tmp_path, 20).replace(', "9"]', "]")
    with pytest.raises(LabelOutOfRange) as caught:
        build(write_job(tmp_path, dataset))
    assert caught.value.found == "label 9"


def write_images(folder: Path, count: int = 12, broken: tuple[str, ...] = ()) -> str:
    """Write real digits as PNG files of two classes; the broken ones hold no image."""
    from PIL import Image

    inputs, _ = digits(count)
    for i in range(count):
        path = folder / "images" / ("even" if i % 2 == 0 else "odd") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(inputs[i, 0]).save(path)
        if path.name in broken:
            path.write_bytes(b"no image at all")
    return (
        '[[dataset]]\nname = "digits"\nkind = "image_folder"\npath = "images"\nchannels = 1\nrows_per_shard = 4\n'
        "max_quarantined = 0.5\n"
    )


def test_an_unreadable_image_is_quarantined_with_its_reason_and_left_out(tmp_path: Path) -> None:
    write_teacher(tmp_path, classes=2)
    report = build(write_job(tmp_path, write_images(tmp_path, broken=("003.png",)), teacher_section(classes=2)))
    quarantined = report.quarantined["digits"]
    assert report.exit_code == 3
    assert quarantined.select("row", "sample_id").rows() == [(7, "odd/003.png")]
    assert "cannot identify image file" in quarantined["error"][0]
    table = Cache.open(str(tmp_path / "cache")).samples().of("digits", ["toy"])
    assert table["row"].to_list() == [row for row in range(12) if row != 7]
    assert table.filter(pl.any_horizontal(pl.col("^toy_.*$").is_null())).is_empty()


def test_a_shard_without_any_readable_row_is_built(tmp_path: Path) -> None:
    write_teacher(tmp_path, classes=2)
    broken = ("000.png", "002.png", "004.png", "006.png")  # the whole first shard: files are taken class by class
    job = write_job(
        tmp_path,
        write_images(tmp_path, broken=broken),
        teacher_section(classes=2, extra='features.f = { layer = "conv" }'),
    )
    report = build(job)
    cache = Cache.open(str(tmp_path / "cache"))
    assert (len(report.quarantined["digits"]), cache.committed("digits", "toy")) == (4, {0, 1, 2})
    assert cache.read_targets("digits", "toy", 0, names=["logits", "feature/f"])["feature/f"].shape == (4, 4)


def test_an_image_of_another_size_is_quarantined_and_told_of_resizing(tmp_path: Path) -> None:
    from PIL import Image

    dataset = write_images(tmp_path)
    Image.new("L", (9, 8)).save(tmp_path / "images/odd/001.png")
    error = build(write_job(tmp_path, dataset)).quarantined["digits"]["error"][0]
    assert error == "is uint8 (1, 8, 9), the dataset is uint8 (1, 8, 8); set `size` to resize"


def test_images_of_mixed_sizes_are_refused_before_the_first_shard(tmp_path: Path) -> None:
    from PIL import Image

    dataset = write_images(tmp_path).replace("0.5", "0.1")
    for name in ("001", "003", "005"):
        Image.new("L", (9, 8)).save(tmp_path / f"images/odd/{name}.png")
    with pytest.raises(BadRequest, match="different shapes") as caught:
        build(write_job(tmp_path, dataset))
    assert "[1, 8, 9]: 3 of those looked at, such as odd/001.png" in str(caught.value.found)
    assert str(caught.value.do).startswith("size = 8 ")
    assert not (tmp_path / "cache").exists()


def test_a_large_image_warns_nobody(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (10_000, 9_000)).save(tmp_path / "large.png")
    code = (
        "from pathlib import Path; from storage.datasets.published.image_folder import ImageFolderSource as Source\n"
        "source = Source(name='d', kind='image_folder', path=Path('.'), channels=1, size=8)\n"
        "print(source.decode(Path('large.png').read_bytes()).shape)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("(1, 8, 8)\n", "")


def test_a_source_that_shrinks_during_the_build_is_noticed() -> None:
    from storage.format.rows import Extent
    from teacher_cache.work.ingest import _samples

    class Shrunk:
        name = "digits"
        by_ranges = False

        def check_unchanged(self, *_: object) -> None:
            pass

        def read(self, *_: object) -> list[str]:
            return ["one sample"]

    with pytest.raises(MissingSource):
        list(_samples(Shrunk(), [Extent("a", 0, 2, 1, "v")]))  # type: ignore[arg-type]


def test_a_cuda_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    from storage.errors import BadRequest

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    write_teacher(tmp_path)
    with pytest.raises(BadRequest, match="no CUDA device"):
        build(write_job(tmp_path, write_digits(tmp_path, 16), teacher_section()), device="cuda")
