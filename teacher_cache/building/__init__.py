"""The story of a build.

survey.py    what a build will do: a job against what its cache holds
growth.py    integers only: which rows are new, where shards end, what is missing
memory.py    the peak memory of a worker, bounded before anything runs
build.py     write the promises, run the shards that are missing, say what happened
stages.py    the loop over the shards of a stage, which recoding shares, and the report
runners.py   run much work; here without a cluster
"""
