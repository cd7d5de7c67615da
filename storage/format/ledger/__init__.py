"""All commits of a cache at a glance: rows, bytes and rates, without reading every commit each time.

memory.py    summaries of the commits that were listed: what is remembered of them, and what is read
segments.py  the ledger's files: appended, and merged by size
"""

from storage.format.ledger.memory import Ledger, remember, spare_segments, two_classes, untrue_segments

__all__ = ["Ledger", "remember", "spare_segments", "two_classes", "untrue_segments"]
