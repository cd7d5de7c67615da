"""What students are asked: the same of all students of a pass, whose held rows are read once.

evaluate.py      figures on the held rows, after every epoch
beside.py        those beside each teacher, of students that have several
vectors.py       those of students whose answers are vectors; numbers.py of those that tell numbers
predictions.py   what each says of each held row, once it is settled
latency.py       how fast it answers
"""
