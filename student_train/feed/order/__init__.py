"""The order of rows: a pure function of seed, epoch and the sizes of shards.

epochs.py    an epoch in which each row comes once, in windows of shards; how batches are cut from it
mixture.py   one in which each dataset has a share
views.py     which view of its rows each epoch shows
"""

from student_train.feed.order.epochs import (
    Cut,
    Order,
    Piece,
    Positions,
    Window,
    count_steps,
    dataset_windows,
    epoch_windows,
    interleave,
    join_windows,
    largest_batch,
    positions_of,
    window_order,
)
from student_train.feed.order.mixture import Shuffle

__all__ = [
    "Cut",
    "Order",
    "Piece",
    "Positions",
    "Shuffle",
    "Window",
    "count_steps",
    "dataset_windows",
    "epoch_windows",
    "interleave",
    "join_windows",
    "largest_batch",
    "positions_of",
    "window_order",
]
