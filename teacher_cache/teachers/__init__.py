"""Teachers: what a job says of one, what a cache is promised, and how one is loaded.

What a job says of one, and what is known before it is loaded:

options.py    what a job says of a teacher, and what the cache is promised
kinds/        one file a kind, the table of them, and what each must say of itself
spoken.py     which tokenizer a teacher speaks; what the job says where a kind says nothing
classes.py    its scores against a dataset's classes, by name
weights.py    files of weights: digests and tensors

It is loaded:

loading.py    load one; on a worker, once for all its shards
spread.py     its layers on several devices, in memory or on the disk
loaded.py     which weights and layers it has now
steady.py     whether it has one answer for each row

And asked:

model.py      what it is fed, which layers are tapped, what it answers
fed.py        pixels in the range that it wants, normalised as it was trained
parts.py      one in two parts: a body that runs once, a head for some sites at a time
runtime.py    one that another library computes, such as onnxruntime
probabilities.py  logits of one that gives probabilities

To add a kind of teacher: copy `kinds/factory.py`; a line in the table of `kinds/`; and its keys among those of
`TeacherOptions` (`options.py`).
"""
