"""What jobs/grey.*.toml read: a folder of grey pictures, and a teacher of colour pictures that is asked about them.

`python docs/jobs/grey_data.py FOLDER_OF_CIFAR10 caches/grey-from` writes 3,000 pictures to train on and 1,000 that
nobody sees, 224 by 224, a folder for each of ten classes.
"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from io import BytesIO
from pathlib import Path
from typing import Any

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the colours that the teacher was trained on


def build(code: str) -> Any:
    """Return the network of a file that has `ResNet9`, for one channel: grey is a colour of three equal parts."""
    spec = spec_from_file_location("colour", Path(__file__).parent / code)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)

    class Grey(module.ResNet9):  # type: ignore[misc, name-defined]  # of a file that the job names
        """(B, 1, 32, 32) pixels in [0, 1] to (B, 10) logits."""

        def forward(self, x: Any) -> Any:
            mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
            return super().forward((x.expand(-1, 3, -1, -1) - mean) / std)

    return Grey()


def write(source: Path, out: Path, rows: int) -> None:
    """Write the first rows of a Parquet file as pictures, a folder a class."""
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(source).slice(0, rows)
    classes = table.schema.metadata[b"classes"].decode().split(",")
    for number, row in enumerate(table.to_pylist()):
        folder = out / classes[row["label"]]
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.open(BytesIO(row["image"]["bytes"])).convert("L")
        picture.resize((224, 224), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.png")


if __name__ == "__main__":
    for name, split, rows in (("train", "train", 3_000), ("new", "test", 1_000)):
        write(Path(sys.argv[1]) / f"cifar10-{split}.parquet", Path(sys.argv[2]) / name, rows)
