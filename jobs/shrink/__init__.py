"""`student bench`: every way to make a smaller student, trained on labels alone and distilled, compared.

bench.py     the story: made, measured, trained in one pass, measured again
measure.py   accuracy on held rows, and time for one row and for many
"""
