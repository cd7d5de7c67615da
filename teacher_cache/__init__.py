"""The first half: run teachers over datasets once, and commit what they said.

`build` is the story of a whole build, `ingest` and `teach` are those of one shard. A student's training imports none.
"""
