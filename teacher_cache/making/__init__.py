"""`student make`: a student made from a teacher, read once; training starts from the folder and never sees the teacher.

make.py      the story: a teacher, a way, a folder
rows.py      a few rows of the cache, for scores and calibration
subject.py   the teacher as a student as it is, from which all ways go on
asking.py    rows as a student is given them, what its layers make of them, and batch norms that take theirs again
sizes.py     what a target asks for, and how near a student comes
ways/        copied, pruned, factorised, quantised

Only the command `student make` imports this, and what it writes passes through the one door to the students.
"""
