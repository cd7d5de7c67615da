"""`student make`: a student made from a teacher, read once; training starts from the folder and never sees the teacher.

make.py      the story: a teacher, a way, a folder
subject.py   the teacher as a student as it is, from which all ways go on
rows.py      a few rows of the cache, for scores and calibration
asking.py    these as a student is given them, what its layers make of them, and batch norms that take theirs again
sizes.py     what a target asks for, and how near a student comes
ways.py      the ways by name, and what each may be told
prune.py     fewer units: which stay, and a network of those
copying.py   all blocks or some, as wide as they are or narrower
blocks.py    whole blocks: found, scored, left out
coupled.py   which units stand and fall together, through torch-pruning
scores.py    which units matter: by weights, gradients, activations, or none
slices.py    the tensors of those that stay
lowrank.py   layers as two of lower rank
quantize.py  weights as int8 codes, after training

Only the command `student make` imports this, and what it writes passes through the one door to the students.
"""
