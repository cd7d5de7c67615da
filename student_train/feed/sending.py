"""Host rows to a GPU, some batches ahead of the step that uses them.

A thread picks the rows, and a CUDA stream of its own copies them while the device computes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

import torch

from student_train.feed.batches import Arrays

AHEAD = 2  # batches on their way: in pinned memory of the host until they are copied, and on the device

Item = TypeVar("Item")


def send_ahead(
    picked: Generator[tuple[Item, Arrays], None, None], device: torch.device
) -> Iterator[tuple[Item, Arrays]]:
    """Yield items with their arrays on a GPU.

    Args:
        picked: items with their arrays on the host; a thread draws them.
        device: which GPU.
    """
    copies = torch.cuda.Stream(device)  # made here: the thread may have another current device
    for item, arrays, copied in draw_ahead(_send(picked, copies), AHEAD):
        steps = torch.cuda.current_stream(device)
        steps.wait_event(copied)  # the device waits, not this thread
        for values in arrays.values():
            values.record_stream(steps)  # allocated for one stream and used by another: not to be reused before that
        yield item, arrays


def _send(
    picked: Generator[tuple[Item, Arrays], None, None], copies: torch.cuda.Stream
) -> Generator[tuple[Item, Arrays, torch.cuda.Event], None, None]:
    with closing(picked):
        for item, arrays in picked:
            with torch.cuda.stream(copies):
                # Torch lends out pinned memory again only when the copies from it are done.
                sent = {
                    name: values.pin_memory().to(copies.device, non_blocking=True) for name, values in arrays.items()
                }
                copied = copies.record_event()
            yield item, sent, copied


def draw_ahead(items: Generator[Item, None, None], count: int) -> Iterator[Item]:
    """Yield what a generator yields, None apart; a thread draws up to `count` items before they are asked for.

    What the generator raises is raised here, in its turn. Whoever stops early closes the generator and ends the thread.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="feed")
    drawn = deque(thread.submit(next, items, None) for _ in range(count))
    try:
        while (item := drawn.popleft().result()) is not None:
            drawn.append(thread.submit(next, items, None))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)  # first: the thread may be in the generator
        items.close()
