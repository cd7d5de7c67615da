"""What is stored of a position with a label is what encoding it by itself gives: through a real cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from storage.digests import sample_keys
from storage.encodings import SparseEncoding
from storage.encodings.draws import position_keys
from tests.language.toys import IDS, counting_cache, counting_teacher

PADDING, SCALE = 3, 2.0
ENCODING = 'encoding = { kind = "sparse", k = 2, n = 3 }'


def test_each_labelled_position_is_encoded_as_a_row_of_its_own_and_padding_is_no_class(tmp_path: Path) -> None:
    cache = counting_cache(tmp_path, counting_teacher(extra=ENCODING, scale=SCALE, padding=PADDING))
    samples = cache.samples().of("counting")
    for shard, start, stop in cache.catalogue().shards("counting"):
        names = cache.catalogue().read_commits("counting", "right")[shard].array_names
        found = cache.read_targets("counting", "right", shard, names=names)
        inputs, labels = (
            torch.from_numpy(read("counting", shard)).long() for read in (cache.read_inputs, cache.read_labels)
        )
        logits = SCALE * torch.nn.functional.one_hot((inputs + 1) % IDS, IDS + PADDING).float()
        keys = position_keys(torch.from_numpy(sample_keys(samples["sample_id"][start:stop].to_list())), inputs.shape[1])
        assert keys.unique().numel() == keys.numel()
        assert 0 < int((labels < 0).sum()) < labels.numel()
        for place, (row, position) in enumerate((labels >= 0).nonzero().tolist()):
            alone = SparseEncoding(k=2, n=3).encode(
                logits[row, position][None],
                num_classes=IDS,
                labels_B=labels[row, position][None],
                keys_B=keys[row, position][None],
            )
            assert found.keys() == alone.keys()
            for name, values in alone.items():
                assert found[name][place].tolist() == values[0].tolist(), (name, row, position)
    assert int(found["draws"].astype(np.int64).sum(-1).max()) < IDS
