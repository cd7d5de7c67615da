"""The story of a build.

prepared.py     what a build is asked for, and what it will do
survey.py       a job against what its cache holds: what is missing
sources.py      a source against what the cache holds of it: new, changed and mended rows
afresh.py       what to do where the cache holds another dataset
pictures.py     of pictures that are kept as they come, how large a shard is
ranges.py       the same of a source in ranges of bytes
asked.py        what a job asks for, begun or not
augmenting.py   whether a dataset has views, and which
growth.py       integers only: which rows are new, where shards end, what is missing
memory.py       the peak memory of a worker, bounded before anything runs
alone.py        one build at a time of each part of a cache
build.py        write the promises, run the shards that are missing, say what happened
stages.py       the loop over the shards of a stage, which recoding shares, and the report
runners.py      run much work; here without a cluster
"""
