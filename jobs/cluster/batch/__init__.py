"""Workers in jobs of a batch scheduler: SLURM, and by the same table PBS, LSF and SGE.

submitting.py     jobs that the command submits, one a worker (dask-jobqueue)
pending.py        whether those wait, why, and which have ended before their worker came
allocation.py     the tasks of the SLURM job that a command runs in already
leaving.py        workers whose job will end: no work that cannot end in it, and away in time
"""
