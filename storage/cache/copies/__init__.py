"""What goes from one cache to another place, or is compared with one there: no teacher is asked.

copy.py       the same cache elsewhere: object by object, resumable, a shard's commit last
compact.py    a cache of fewer, larger shards from one of many small ones
diff.py       what two caches promise and hold, compared: samples by id
answers.py    how far what they store of a teacher is apart
publishing.py the index by which a cache is read where nothing can be listed; its notice
"""
