"""Commands of `student` that have much to say, and what they share.

making.py     `student make copy | prune | lowrank | quantize`
using.py      `student eval | predict | export`
benching.py   `student bench`
chaining.py   `student chain`
training.py   a job's students are trained: of `student train` and `student chain`
dry_run.py    `student train --dry-run`
"""
