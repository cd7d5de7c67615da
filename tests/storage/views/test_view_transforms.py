"""What each transform does to an image, and that it is the same whatever is batched with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from storage.views.mixing import choose_partners
from storage.views.numbers import ONE, UNIT, Rolls, beta_steps
from storage.views.options import (
    AnyTransform,
    ColorJitter,
    Cutmix,
    Cutout,
    Flip,
    Mixup,
    PadCrop,
    RandomResizedCrop,
    Transform,
    ViewOptions,
    unfit,
)
from storage.views.shown import View
from storage.views.transforms import TRANSFORMS

EVERY: dict[str, tuple[Transform, ...]] = {
    "pad_crop": (PadCrop(padding=2),),
    "random_resized_crop": (RandomResizedCrop(scale=(0.3, 1.0)),),
    "flip": (Flip(),),
    "color_jitter": (ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),),
    "cutout": (Cutout(size=3, probability=0.5),),
    "mixup": (Mixup(alpha=1.0, probability=0.5),),
    "cutmix": (Cutmix(probability=0.5),),
    "all": (
        PadCrop(padding=2),
        RandomResizedCrop(),
        Flip(),
        ColorJitter(brightness=0.2, contrast=0.3, saturation=0.4),
        Cutout(size=4),
        Mixup(probability=0.4),
        Cutmix(probability=0.5),
    ),
}


def samples(rows: int, channels: int = 3, height: int = 9, width: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (rows, channels, height, width), dtype=torch.uint8, generator=generator)
    return images, torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator)


def rolls(keys_B: Tensor, place: int = 0) -> Rolls:
    return Rolls(keys_B, seed=0, view=0, place=place)


def apply(images: Tensor, keys_B: Tensor, step: Transform) -> Tensor:
    return TRANSFORMS[type(step)](images, step, rolls(keys_B))


@pytest.mark.parametrize("name", EVERY)
def test_a_view_does_not_depend_on_how_rows_are_batched(name: str) -> None:
    images, keys = samples(300)
    partners, partner_keys = images.flip(0), keys.flip(0)
    view = View(EVERY[name], seed=3, number=5)
    whole = view.show(images, keys, partners, partner_keys)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    for rows in order.split(77):
        part = view.show(images[rows], keys[rows], partners[rows], partner_keys[rows])
        assert torch.equal(part.images, whole.images[rows])
        assert torch.equal(part.own_weight_B, whole.own_weight_B[rows])


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("other", [{"seed": 1}, {"number": 1}])
def test_another_seed_or_view_is_another_image(name: str, other: dict[str, int]) -> None:
    images, keys = samples(40)
    first = View(EVERY[name], seed=0, number=0).show(images, keys, images.flip(0), keys.flip(0))
    second = View(EVERY[name], **{"seed": 0, "number": 0} | other).show(images, keys, images.flip(0), keys.flip(0))
    assert not torch.equal(first.images, second.images)


@pytest.mark.parametrize("name", EVERY)
def test_a_shard_is_shown_as_its_batches_are(name: str) -> None:
    images, keys = samples(150)
    splits = np.array(["train", "validation", "train"] * 50)
    view = View(EVERY[name], seed=0, number=2)
    shard = view.show_shard(images, keys.numpy(), splits)
    partners = torch.from_numpy(view.partners(keys.numpy(), splits))
    assert torch.equal(view.show(images, keys, images[partners], keys[partners]).images, shard)


def test_a_crop_that_was_taken_already_is_all_there_is_to_do() -> None:
    images, keys_B = samples(4)
    view = View((RandomResizedCrop(scale=(0.3, 0.5)),), seed=0, number=0, begun=True)
    assert view.show(images, keys_B).images is images  # no copy
    flipped = View((*view.transforms, Flip(probability=1.0)), seed=0, number=0, begun=True)
    assert torch.equal(flipped.show(images, keys_B).images, images.flip(3))


def test_a_shifted_image_is_a_window_of_the_padded_one() -> None:
    images, keys = samples(200)
    shifted, padded = apply(images, keys, PadCrop(padding=2)), torch.nn.functional.pad(images, (2, 2, 2, 2))
    found = set()
    for image, around in zip(shifted, padded, strict=True):
        places = [(y, x) for y in range(5) for x in range(5) if torch.equal(around[:, y : y + 9, x : x + 12], image)]
        assert len(places) == 1
        found |= set(places)
    assert len(found) == 25


def test_a_flip_mirrors_left_and_right_or_nothing() -> None:
    images, keys = samples(400)
    flipped = apply(images, keys, Flip(probability=0.25))
    mirrored = (flipped == images.flip(3)).flatten(1).all(dim=1)
    assert torch.equal(flipped[~mirrored], images[~mirrored])
    assert 70 < int(mirrored.sum()) < 130  # 100, deviation 8.7


def test_a_crop_of_everything_is_the_image() -> None:
    images, keys = samples(20, height=9, width=9)
    assert torch.equal(apply(images, keys, RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0))), images)


def test_a_resized_crop_interpolates_as_torch_does() -> None:
    from storage.views.transforms import _between, _columns, _rows, blend

    images, _ = samples(1, height=8, width=8)
    start, length = torch.tensor([2]), torch.tensor([4])
    above, below, weight = _between(8, start, length)
    rows = blend(_rows(images, below), _rows(images, above), weight[:, None, :, None])
    ours = blend(_columns(rows, below), _columns(rows, above), weight[:, None, None, :])
    box = images[:, :, 2:6, 2:6].float()
    theirs = torch.nn.functional.interpolate(box, size=(8, 8), mode="bilinear", align_corners=False)
    assert (ours.float() - theirs).abs().max() <= 1.5  # two roundings to whole levels, and positions of 1/128


def test_brightness_multiplies_and_stops_at_white() -> None:
    images = torch.tensor([0, 100, 200, 255], dtype=torch.uint8).reshape(1, 1, 1, 4).repeat(500, 1, 1, 1)
    _, keys = samples(500)
    jittered = apply(images, keys, ColorJitter(brightness=0.5))
    assert jittered[:, 0, 0, 0].max() == 0
    factors = jittered[:, 0, 0, 1] / 100
    assert (factors.min().item(), factors.max().item()) == pytest.approx((0.5, 1.5), abs=0.02)
    expected = (200 * factors).clamp(max=255)
    assert (jittered[:, 0, 0, 2] - expected).abs().max() <= 1.5


def test_contrast_keeps_the_mean_grey_and_saturation_keeps_grey() -> None:
    images, keys = samples(100, height=16, width=16)
    middle = images // 4 + 96  # far enough from black and white that nothing is cut off
    contrasted = apply(middle, keys, ColorJitter(contrast=0.5))
    assert (contrasted.float().mean(dim=(1, 2, 3)) - middle.float().mean(dim=(1, 2, 3))).abs().max() < 3
    spread = contrasted.float().std(dim=(1, 2, 3)) / middle.float().std(dim=(1, 2, 3))
    assert (spread.min().item(), spread.max().item()) == pytest.approx((0.5, 1.5), abs=0.06)
    grey = middle[:, :1].repeat(1, 3, 1, 1)
    assert (apply(grey, keys, ColorJitter(saturation=1.0)).int() - grey.int()).abs().max() <= 1


def test_a_hole_is_a_black_square_cut_off_at_the_edges() -> None:
    _, keys = samples(300)
    white = torch.full((300, 3, 9, 12), 255, dtype=torch.uint8)
    black = apply(white, keys, Cutout(size=4)) == 0
    assert torch.equal(black[:, 0], black[:, 1])
    areas = black[:, 0].flatten(1).sum(dim=1)
    assert (areas.min().item(), areas.max().item()) == (4, 16)


@pytest.mark.parametrize("step", [Mixup(alpha=1.0), Cutmix(alpha=1.0)])
def test_labels_weigh_as_pixels_do(step: Transform) -> None:
    _, keys = samples(500)
    white, black = torch.full((500, 3, 9, 12), 255, dtype=torch.uint8), torch.zeros(500, 3, 9, 12, dtype=torch.uint8)
    shown = View((step,), seed=0, number=0).show(white, keys, black, keys)
    share = shown.images.float().mean(dim=(1, 2, 3)) / 255
    assert (share - shown.own_weight_B).abs().max() < 0.003  # mixup rounds to whole levels
    assert shown.own_weight_B.std() > 0.15


def test_at_most_one_of_mixup_and_cutmix_applies_to_a_row() -> None:
    _, keys = samples(2000)
    white, black = torch.full((2000, 1, 8, 8), 255, dtype=torch.uint8), torch.zeros(2000, 1, 8, 8, dtype=torch.uint8)
    steps = (Mixup(alpha=1.0, probability=0.3), Cutmix(probability=0.5))
    shown = View(steps, seed=0, number=0).show(white, keys, black, keys)
    images, weights = shown.images.flatten(1), shown.own_weight_B
    faded = ((images > 0) & (images < 255)).any(dim=1)
    boxed = (images == 0).any(dim=1) & (images == 255).any(dim=1)
    assert not (faded & boxed).any()
    assert torch.equal(images[faded], (weights[faded, None] * 255).round().byte().expand(-1, 64)) or (
        (images[faded].float() - weights[faded, None] * 255).abs().max() <= 1
    )
    assert int(faded.sum()) == pytest.approx(600, abs=80)  # of 0.3, less λ = 0 and 1
    assert (weights[~faded & ~boxed] % 1 == 0).all()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 40.0])
def test_lambda_is_beta_distributed(alpha: float) -> None:
    from scipy.stats import beta

    expected = [beta.cdf((i + 0.5) / UNIT, alpha, alpha) for i in range(UNIT)]
    assert [step / ONE for step in beta_steps(alpha)] == pytest.approx(expected, abs=1e-6)


def test_partners_are_other_rows_of_the_same_split() -> None:
    _, keys = samples(101)
    splits = np.array(["train"] * 70 + ["validation"] * 30 + ["alone"])
    partners = choose_partners(keys.numpy(), splits, seed=0, view=0)
    assert (splits[partners] == splits).all()
    assert (partners[:100] != np.arange(100)).all()
    assert partners[100] == 100
    assert len(set(partners[:70].tolist())) > 35  # not one for all
    assert (choose_partners(keys.numpy(), splits, seed=0, view=1) != partners).any()


def test_dice_are_fair_and_differ_by_purpose_and_place() -> None:
    keys = torch.arange(20_000)  # keys that differ in few bits
    thrown = rolls(keys).below(6, 0)
    assert (torch.bincount(thrown, minlength=6) - 20_000 / 6).abs().max() < 250  # deviation 53
    for other in (rolls(keys).below(6, 1), rolls(keys, place=1).below(6, 0)):
        assert ((other == thrown).float().mean() - 1 / 6).abs() < 0.02


def test_the_dice_are_these_for_ever() -> None:
    assert rolls(torch.tensor([0, 1, -1])).bits(0).tolist() == [713796610, 3705896762, 2260596261]


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ({"kind": "pad_crop", "padding": 0}, "greater than or equal to 1"),
        ({"kind": "flip", "probability": 1.5}, "less than or equal to 1"),
        ({"kind": "random_resized_crop", "scale": [0.9, 0.5]}, "least <= most"),
        ({"kind": "random_resized_crop", "ratio": [0.0, 0.5]}, "ratio is"),
        ({"kind": "color_jitter"}, "does nothing"),
        ({"kind": "mixup", "alpha": 0}, "greater than 0"),
        ({"kind": "rotate"}, "rotate"),
    ],
)
def test_options_that_mean_nothing_are_refused(section: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        TypeAdapter(AnyTransform).validate_python(section)


@pytest.mark.parametrize(
    ("transforms", "complaint"),
    [
        ([Mixup(), Flip()], "after all other"),
        ([Mixup(), Cutmix()], "add up to 2"),
        ([], "at least 1"),
    ],
)
def test_lists_of_transforms_that_cannot_be_are_refused(transforms: list[Transform], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        ViewOptions(count=2, transforms=transforms)


@pytest.mark.parametrize(
    ("step", "shape", "dtype", "reason"),
    [
        (Flip(), (3, 8, 8), "float32", "its inputs are float32 of shape (3, 8, 8)"),
        (Flip(), (16,), "int32", "its inputs are int32 of shape (16,)"),
        (Flip(), (8, 8), "uint8", "its inputs are uint8 of shape (8, 8)"),
        (PadCrop(padding=8), (3, 8, 8), "uint8", "padding = 8 can push all of an image out"),
        (Cutout(size=8), (3, 8, 8), "uint8", "size = 8 can blacken all of an image"),
        (ColorJitter(saturation=0.1), (1, 8, 8), "uint8", "saturation is of three channels, not 1"),
        (Flip(), (3, 8, 8), "uint8", None),
    ],
)
def test_inputs_that_do_not_fit_are_told(step: Transform, shape: tuple[int, ...], dtype: str, reason: str) -> None:
    assert unfit([step], shape, dtype) == reason
