"""Everything before the first step: what is asked for is checked, decided, weighed, and told by a dry run.

request.py       what is asked for, and each of its students once it is checked
prepare.py       the story: every student against the cache and against the runs that are there; in this order:
checks.py          rows, losses and students that do not go together
served.py          whether the cache serves what losses need
beginning.py       the folder that a student starts from as it is, without an architecture of its own
blueprint.py       what a student is
selections.py      its rows, found once for all students that want the same
against.py         the rows that it is measured on, and against which teacher
left_open.py       what a job leaves out, as its task or its cache decides it
identity.py        what decides all that its run computes, and whether a record of that is there already
weighing/        what all of them will take: memory and work
installed.py     packages that only some jobs ask for
dry_run.py       what `--dry-run` says
"""
