"""What goes from one cache to another place, or is compared with one there: no teacher is asked.

copy.py       the same cache elsewhere: object by object, resumable, a shard's commit last
publishing.py the index by which a cache is read where nothing can be listed; its notice
"""
