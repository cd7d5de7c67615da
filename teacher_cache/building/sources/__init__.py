"""A source against what the cache holds of it, before any row is ingested.

dataset.py    the story, in this order: opened as it was promised, promised, grown, cut, compared
promise.py    what a row of it is: what the cache is promised, and must not be contradicted in
growth.py     integers only: which rows are new, where shards end, what is missing
cutting.py    how much of it is a shard
pictures.py   that, of pictures that are kept as they come
changes.py    recorded rows that changed, moved, are gone or mended
ranges.py     the same of a source in ranges of bytes
afresh.py     what to do where the cache holds another dataset
"""
