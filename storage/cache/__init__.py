"""An open cache, and what people ask of one.

cache.py      rows in, arrays out: the only way in for both sides
status.py     how far it is, what it promises, what its samples are like
verify.py     every object against its digest; what no commit names is cleared away
"""

from storage.cache.cache import CACHE_JSON, TEACHER_COLUMNS, TOKENIZER_JSON, Cache

__all__ = ["CACHE_JSON", "TEACHER_COLUMNS", "TOKENIZER_JSON", "Cache"]
