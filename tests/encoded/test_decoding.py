"""What a cache keeps of an image, and how it is decoded: odd images, other decoders, damage, refusals."""

from __future__ import annotations

import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageEnhance

from storage.cache import Cache
from storage.cache.verify import verify
from storage.errors import BadRequest, CorruptObject, StaleCache, StillroomError, TryAgain
from storage.format.shards import ShardKey
from storage.inputs import encoded, inputs_of
from storage.inputs.policy import ImagePolicy
from storage.inputs.ragged import Ragged
from storage.views import PLAIN, check
from student_train.feed.batches import Needs
from student_train.feed.residency import FeedPool
from student_train.feed.selection import select_rows
from tests.conftest import Program
from tests.encoded.toys import crops, dataset, seeing, train, write_photographs, write_teacher
from tests.forging import Arrays, write_again
from tests.teacher_cache.toys import Silent, build, write_job

ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache of photographs of which some are odd and some cannot be read, and a teacher's word on them."""
    folder = tmp_path_factory.mktemp("odd")
    write_photographs(folder / "photographs", 8)
    write_odd(folder / "photographs/china")
    write_teacher(folder)
    watcher = Silent()
    report = build(write_job(folder, dataset(ODD), seeing("same")), watcher=watcher)
    assert report.exit_code == 3
    return folder / "cache"


ODD = 'inputs = "encoded"\nmax_quarantined = 0.5'
UNREADABLE = {"cut.jpg": "OSError", "deep.png": "16", "text.jpg": "UnidentifiedImageError", "empty.jpg": "Unidentified"}


def write_odd(folder: Path) -> None:
    """Write images of all the ways that trouble a reader."""
    (_, pixels), (_, others) = crops(2, (50, 80), seed=7)
    image, another = Image.fromarray(pixels), Image.fromarray(others)
    turned = image.getexif()
    turned[ORIENTATION] = 6  # a quarter to the right
    image.save(folder / "turned.jpg", exif=turned)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("P").save(folder / "animated.gif", save_all=True, append_images=[another.convert("P")])
    image.convert("RGBA").save(folder / "clear.png")
    image.save(folder / "picture.webp", quality=80)
    image.save(folder / "progressive.jpg", progressive=True, quality=95)
    Image.fromarray(pixels[:, :, 0].astype(np.uint16) << 8).save(folder / "deep.png")
    whole = (folder / "progressive.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 3])
    (folder / "text.jpg").write_text("no image")
    (folder / "empty.jpg").write_bytes(b"")


def test_odd_images_are_decoded_as_pixels_would_have_been(cache: Path) -> None:
    opened, policy = Cache.open(str(cache)), ImagePolicy(size=32)
    samples, kind = opened.samples().of("photographs").sort("row"), inputs_of(opened.dataset("photographs"))
    shown = {}
    for shard in opened.committed("photographs"):
        rows = opened.read_rows("photographs", shard)
        shown |= {10 * shard + row: kind.one(rows, row) for row in range(len(rows))}
    for row, name in samples.select("row", "sample_id").iter_rows():
        expected = policy.pixels((cache.parent / "photographs" / name).read_bytes())
        assert np.array_equal(shown[row], expected), name
    assert samples["sample_id"].str.contains("turned|cmyk|animated|clear|webp|progressive").sum() == 6


def test_what_cannot_be_read_is_quarantined_with_its_reason_and_keeps_no_bytes(cache: Path) -> None:
    opened = Cache.open(str(cache))
    told = dict(opened.samples().quarantined("photographs").select("sample_id", "error").iter_rows())
    assert sorted(told) == sorted(f"china/{name}" for name in UNREADABLE)
    assert [name for name, reason in UNREADABLE.items() if reason not in told[f"china/{name}"]] == []
    rows = [opened.read_rows("photographs", shard) for shard in sorted(opened.committed("photographs"))]
    assert sum(len(row) == 0 for shard in rows for row in shard) == len(UNREADABLE)


def test_pictures_are_decoded_into_memory_that_held_others(cache: Path) -> None:
    opened = Cache.open(str(cache))
    kind = inputs_of(opened.dataset("photographs"))
    rows = opened.read_rows("photographs", 0)
    wanted = np.arange(len(rows))[::-1]
    used = np.full((len(rows), 3, 32, 32), 255, np.uint8)
    fed = kind.fed(rows, wanted)
    assert isinstance(fed, encoded.ToDecode)
    assert (len(fed), fed.shape[1:], fed.dtype) == (len(rows), (3, 32, 32), np.uint8)
    assert fed.decode(used) is used
    expected = np.stack([kind.one(rows, row) for row in wanted])
    assert np.array_equal(used, expected)
    assert np.array_equal(fed.decode(None), expected)
    unread = [place for place, row in enumerate(wanted) if not len(rows[row])]
    assert unread
    assert not used[unread].any()


def test_a_process_compares_a_picture_once_unless_it_verifies(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    ours = encoded.pixels_digest
    monkeypatch.setattr(encoded, "pixels_digest", lambda pixels: compared.append(found := ours(pixels)) or found)
    encoded.proven.cache_clear()
    opened = Cache.open(str(cache))
    kind, rows = inputs_of(opened.dataset("photographs")), opened.read_rows("photographs", 0)
    readable = sum(len(row) > 0 for row in rows)

    def shown(rows: Any) -> np.ndarray:
        return kind.shown(rows, np.arange(len(rows))).numpy()

    first, again = shown(rows), shown(opened.read_rows("photographs", 0))
    assert (len(compared), np.array_equal(first, again)) == (readable, True)
    kind.look_at(rows)
    assert len(compared) == 2 * readable


@pytest.mark.parametrize("what", ["digests", "bytes", "policy"])
def test_what_was_compared_of_other_rows_is_no_word_on_these(cache: Path, what: str) -> None:
    opened = Cache.open(str(cache))
    spec = opened.dataset("photographs")
    kind, rows = inputs_of(spec), opened.read_rows("photographs", 1)
    assert isinstance(rows, encoded.EncodedRows)
    kind.shown(rows, np.arange(len(rows)))
    flat_T, digests_S = rows.flat_T.copy(), rows.decoded_S.copy()
    match what:
        case "digests":
            digests_S[np.flatnonzero(rows.lengths)[0]] += 1
        case "bytes":
            jpeg = next(row for row in range(len(rows)) if rows[row][:2].tobytes() == b"\xff\xd8")
            flat_T[rows.offsets[jpeg] + len(rows[jpeg]) * 7 // 10] ^= 4  # it is decoded all the same
        case "policy":
            grey = {"source": spec.source | {"channels": 1, "background": [255]}, "input_shape": (1, 32, 32)}
            kind = inputs_of(spec.model_copy(update=grey))
    arrays = {"inputs": Ragged(flat_T, rows.offsets), encoded.DECODED: digests_S}
    others = kind.rows(arrays, {"libraries": encoded.decoders()}, "others")
    with pytest.raises(CorruptObject, match="by the same libraries"):
        kind.shown(others, np.arange(len(others)))


def other_decoder(monkeypatch: pytest.MonkeyPatch, *, said: bool) -> None:
    """Decode as another library would: a picture in a hundred a shade brighter."""
    ours = ImagePolicy.picture

    def picture(policy: ImagePolicy, image: Image.Image) -> Image.Image:
        of_webp, shown = image.format == "WEBP", ours(policy, image)
        return ImageEnhance.Brightness(shown).enhance(1.01) if of_webp else shown

    monkeypatch.setattr(ImagePolicy, "picture", picture)
    encoded.proven.cache_clear()  # as in another process
    if said:
        for module in (encoded, check):
            monkeypatch.setattr(module, "decoders", lambda: {"pillow": "99.0", "webp": "9.9"})


def test_another_decoder_is_noticed_before_a_row_is_shown(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_decoder(monkeypatch, said=True)
    with pytest.raises(StaleCache) as caught:
        train(cache, tmp_path / "runs", "stream", "same")
    assert "row " in caught.value.what
    assert "libraries make the difference: " in caught.value.what
    assert "pillow 99.0" in (caught.value.found or "")
    assert f"pillow {PIL.__version__}" in (caught.value.expected or "")
    assert not verify(Cache.open(str(cache))).bad  # it is the machine's affair, and no fault of the shard


def test_the_same_libraries_that_decode_otherwise_are_damage(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_decoder(monkeypatch, said=False)
    with pytest.raises(CorruptObject, match="by the same libraries"):
        train(cache, tmp_path / "runs", "stream", "same")
    assert [bad.key.teacher for bad in verify(Cache.open(str(cache))).bad] == [None]


def test_a_shard_that_is_built_again_while_its_pictures_are_decoded_is_no_damage(cache: Path, tmp_path: Path) -> None:
    opened = Cache.open(str(shutil.copytree(cache, tmp_path / "cache")))
    needs = Needs(labels=True)
    selection, key = select_rows(opened.samples(), "photographs", needs), ShardKey("photographs", None, PLAIN, 0)

    def redecoded(arrays: Arrays) -> None:
        arrays["decoded"] = np.asarray(arrays["decoded"]) + np.uint64(1)

    write_again(opened, key, redecoded, {})
    feed = FeedPool(opened, torch.device("cpu"), place="stream", window_shards=1).feed(selection, needs)
    with pytest.raises(TryAgain, match="has changed since its rows were selected") as caught:
        list(feed.in_order(4))
    assert "no picture that the ingest saw" in str(caught.value.found)


def test_another_version_that_decodes_the_same_is_as_good(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoded, "decoders", lambda: {"pillow": "99.0"})
    train(cache, tmp_path / "runs", "device", "same", views=0)


@pytest.mark.parametrize(("format_", "quality"), [("jpeg", 75), ("webp", 60)])
def test_images_that_are_encoded_anew_are_shown_as_those_bytes_are(tmp_path: Path, format_: str, quality: int) -> None:
    write_photographs(tmp_path / "photographs", 6)
    job = write_job(tmp_path, dataset(f'inputs = "encoded"\nreencode = "{format_}"\nquality = {quality}'))
    assert build(job).exit_code == 0
    opened = Cache.open(str(tmp_path / "cache"))
    rows, kind = opened.read_rows("photographs", 0), inputs_of(opened.dataset("photographs"))
    for place, name in enumerate(opened.samples().of("photographs").sort("row")["sample_id"]):
        with Image.open(tmp_path / "photographs" / name) as picture:
            small = picture.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
        buffer = BytesIO()
        small.save(buffer, format_, quality=quality)
        assert rows[place].tobytes() == buffer.getvalue()
        assert np.array_equal(kind.one(rows, place), np.asarray(Image.open(buffer)).transpose(2, 0, 1))
        own = ImagePolicy.promised(opened.dataset("photographs").source)  # as a student has it
        assert np.array_equal(own.pixels((tmp_path / "photographs" / name).read_bytes()), kind.one(rows, place))


def test_pictures_are_shrunk_to_a_shorter_side_and_no_smaller_one_is_enlarged() -> None:
    policy, sides = ImagePolicy(size=16, reencode="jpeg", shorter_side=40), []
    for _, pixels in crops(6, (30, 90)):
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        with Image.open(BytesIO(policy.kept(buffer.getvalue()))) as kept:
            sides.append((min(kept.size), min(pixels.shape[:2])))
    assert [kept for kept, _ in sides] == [min(40, was) for _, was in sides]


CROP_LAST = '[views]\ncount = 1\ntransforms = [{ kind = "flip" }, { kind = "random_resized_crop" }]\n'
CUTMIX = '[views]\ncount = 1\ntransforms = [{ kind = "flip" }, { kind = "cutmix" }]\n'


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        ([dataset(), CROP_LAST], "before all else"),
        ([dataset(), seeing("large", "size = 48"), CUTMIX], "cutmix, which count in pixels"),
        ([dataset('inputs = "encoded"\nresize = "crop"'), seeing("large", "size = [48, 64]")], "another part"),
        ([dataset('reencode = "jpeg"')], "kept encoded"),
        ([dataset('inputs = "encoded"\nquality = 80')], "without `reencode`"),
        ([dataset('inputs = "jpeg"')], "encoded"),
    ],
    ids=["crop last", "cutmix at another size", "another shape", "reencode of pixels", "quality alone", "unknown"],
)
def test_what_would_be_something_else_is_refused(sections: list[str], what: str, tmp_path: Path) -> None:
    write_photographs(tmp_path / "photographs", 2)
    write_teacher(tmp_path)
    with pytest.raises(StillroomError) as caught:
        build(write_job(tmp_path, *sections))
    assert isinstance(caught.value, BadRequest)
    assert what in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_pixels_in_place_of_encoded_pictures_are_another_dataset(cache: Path) -> None:
    with pytest.raises(StaleCache) as caught:
        build(write_job(cache.parent, dataset("max_quarantined = 0.5"), seeing("same")))
    assert "source.inputs" in caught.value.what


def test_pictures_are_compacted_as_other_rows_are(cache: Path, program: Program, tmp_path: Path) -> None:
    assert program("cache", "compact", cache, tmp_path / "large", "--rows", 100).code == 0
    large = Cache.open(str(tmp_path / "large"))
    assert (len(large.catalogue().shards("photographs")), verify(large).bad) == (1, ())
    rows = large.read_rows("photographs", 0)
    assert [row.tobytes() for row in rows] == [
        row.tobytes() for shard in range(2) for row in Cache.open(str(cache)).read_rows("photographs", shard)
    ]
