"""A student's figures on data that it never saw.

evaluate.py    the story: rows, whose classes are matched by name, answers, figures
rows.py        labelled rows of a cache
elsewhere.py   labelled rows of a folder or a file, read as the student's own data were
matching.py    classes of the data and of the student, by name and never by position
counting.py    what is counted beside the figures of training: top-5, each class, which is taken for which
"""
