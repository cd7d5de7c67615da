"""The second half: many students trained from a cache, with no teacher code and no teacher weights.

It knows the feed, objectives, students, the training loop and results, and imports `storage` only. Nothing here
prints: progress goes to a callback (`events.py`). Importing this package imports no torch; its modules do.
"""
