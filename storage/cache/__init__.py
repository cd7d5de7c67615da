"""An open cache, and what people ask of one.

catalogue.py  all that it promises and has committed, looked at once: what planning asks
samples.py    what its commits say of each row, as a table
cache.py      the only way in for both sides: opening it; rows in, arrays out
lease.py      who builds, so that a second start waits or ends; processes.py which process that is
labels.py     the label of each row, out of that table
query.py      SQL over what is known of each sample
repeats.py    rows whose content another row has too
standing.py   how a teacher stands beside chance
status.py     how far it is, what it promises, what its samples are like
watcher.py    who is told how far a long command is
verify.py     every object against its digest
garbage.py    what no commit names is cleared away
copies/       the same cache elsewhere, and published
"""

from storage.cache.cache import CACHE_JSON, Cache
from storage.cache.catalogue import TOKENIZER_JSON, Catalogue
from storage.cache.samples import TEACHER_COLUMNS, Samples

__all__ = ["CACHE_JSON", "TEACHER_COLUMNS", "TOKENIZER_JSON", "Cache", "Catalogue", "Samples"]
