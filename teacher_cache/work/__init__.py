"""One shard's work, from what a worker is sent to its commit. Each of the three reads best whole.

pieces.py        what travels, what comes back, and how every piece ends: with a commit
ingest.py        raw samples to model-ready inputs
decoded.py       the rows that come of them: arrays, columns, what is told
ask.py           inputs to a teacher's soft targets and features
answering.py     the batches of a shard: asked about, encoded beside, in halves where they do not fit
batch.py         what is asked, and what is stored of one batch of answers
recode.py        a richer cache's targets to this one's
rows.py          labels, keys and encodings of a shard's rows, as asking and recoding need them
checks.py        what a teacher's answers must be
conversions.py   what soft targets may become without their teacher, and how
surroundings.py  what else an answer depends on: libraries, drivers, processors
telling.py       how far a piece of work is, told to whoever watches
promising.py     what a teacher is, the same for all its shards
perform.py       which of the three a piece of work is
"""
