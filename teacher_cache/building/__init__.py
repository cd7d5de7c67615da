"""The story of a build: what is there is compared with what a job asks for, and what is missing is run and committed.

prepared.py     what a build is asked for, and what it will do; found out in this order:
survey.py         a job against what its cache holds: what is missing
sources/          a source against what the cache holds of it: new, changed and mended rows
augmenting.py     whether a dataset has views, and which
asked.py          what a job asks for, begun or not
memory.py         the peak memory of a worker, bounded before anything runs
alone.py        one build at a time of each part of a cache
build.py        write the promises, run the shards that are missing, say what happened
stages.py       the loop over the shards of a stage, which recoding shares, and the report
runners.py      run much work; here without a cluster
"""
