"""Everything before the first step: what is asked for is checked, weighed, and told by a dry run.

request.py       what is asked for, and each of its students once it is checked
prepare.py       every student against the cache and against the runs that are there
beginning.py     a student that starts from a student's folder as it is, without an architecture of its own
checks.py        rows, losses and students that do not go together
left_open.py     what a job leaves out, as its task or its cache decides it
against.py       which teacher a student is measured against
served.py        whether the cache serves what losses need
blank.py         batches of nothing, to measure with
step_memory.py   what one student's step takes, measured on the meta device
feed_memory.py   what the feeds hold
projection.py    the peak memory of a job, bounded before anything runs; what does not fit is refused
flops.py         how much work a student is
installed.py     packages that only some jobs ask for
dry_run.py       what `--dry-run` says
"""
