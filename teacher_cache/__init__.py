"""The first stage: run teachers over datasets once, and commit what they said.

`build` is the story of a whole build, `shard_task` that of one shard. Nothing here is imported by a student's training.
"""
