"""A view is the same bytes on a CUDA device as on a CPU."""

from __future__ import annotations

import pytest
import torch

from storage.views.shown import View
from tests.storage.views.test_view_transforms import EVERY, samples

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("name", EVERY)
def test_a_view_is_the_same_on_a_gpu(name: str) -> None:
    images, keys = samples(500)
    view = View(EVERY[name], seed=3, number=5)
    on_host = view.show(images, keys, images.flip(0), keys.flip(0))
    moved = (tensor.cuda() for tensor in (images, keys, images.flip(0), keys.flip(0)))
    on_device = view.show(*moved)
    assert torch.equal(on_device.images.cpu(), on_host.images)
    assert torch.equal(on_device.own_weight_B.cpu(), on_host.own_weight_B)
