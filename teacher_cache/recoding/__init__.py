"""A smaller cache from a richer one, without the teacher.

recode.py     the story: promises compared, what is missing run
promises.py   what the richer cache promises, against what the job asks
"""
