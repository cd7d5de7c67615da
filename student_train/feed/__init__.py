"""The feed: batches of a cache's rows, shuffled, read once for all students of a pass. It knows no student.

batches.py       what losses need of a row, and a batch of rows
selection.py     which rows of a dataset, with labels; together.py what several must have alike
devices.py       which device is asked for, and how much of its memory is free
residency.py     where rows are kept, on the device, on the host or in the cache
shard_source.py  arrays of a shard, read and checked
order/           in which order: a shuffle within windows of shards, the same wherever rows are kept; mixtures; views
flat.py          rows of their own length, one after another until a batch is cut
windows.py       shards read ahead on threads; spans.py the rows of a window, side by side
assembly.py      one batch of them, as a view shows it; sending.py sent ahead to a device
feed.py          all of it together
own_loop.py      the same for a training loop that somebody else has written
"""
