"""Dask: the only folder that knows it. One runner for both halves of the system (docs/adr/0010).

What is run, of either half:

builds.py         the work of a build
students.py       `student train` on several devices
groups.py         which students go to which worker, and whether that fits
student_work.py   one group of students on one worker

Where it is run:

pools.py          which workers a build has, and with which devices
opening.py        opens a client: workers of our own, or a scheduler that runs already
batch/            workers in jobs of a batch scheduler
attendance.py     looks after whatever workers there are
versions.py       whether those compute with what this command does
heaps.py          how many heaps the C library keeps, of a worker and of the program itself

And how:

flight.py         runs work on a client's workers, a bounded amount at a time, and survives what dies
sending.py        how a call travels to a worker, whatever lies in the folder where that was started
hearing.py        what workers say of their work before its end
limits.py         how long work may take on a worker
"""
