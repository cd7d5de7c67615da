"""The story: a job, its passes, the loop, and each run's way to its record.

train.py         a whole job, in passes that many students share
one_pass.py      the students of one pass: folders, first steps, feeds
loop.py          the training loop of a pass
cohort.py        the runs of a pass: who joins a step, who leaves
team.py          runs that take their steps together
stacking.py      who is stacked
run.py           one student's way from its first step, or last checkpoint, to its record
measuring/       what students are asked: figures and predictions of the held rows, latency
halving.py       who is set aside early
keeping.py       what is told of shards that are kept on this machine
events.py        what is told while it runs, and in which order
tracking/        the same, told to TensorBoard and MLflow
"""
