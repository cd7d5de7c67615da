"""Job files: strict TOML in, one frozen and checked job out.

reading.py          read a file, all mistakes told at once
mistakes.py         each mistake once, in the words of whoever wrote the file
cache_job.py        what a cache job may say
student_job.py      what a student job may say
cluster_options.py  what `[cluster]` may say in either
pod_options.py      what `[cluster.pods]` may say, of Kubernetes
shrink_job.py       what a job of `student bench` may say
chain_job.py        what a job of `student chain` may say
scale_text.py       what `cache plan --scale` says, on one line
sweep.py            `[defaults]` and `[student.sweep]` multiplied out
sweep_names.py      the names of the students of a sweep
"""
