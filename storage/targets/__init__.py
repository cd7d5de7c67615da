"""Soft targets, decoded: the student's side of what `encodings/` stores as bytes.

soft.py          dense and sparse targets, as losses ask them; here (to students in support.py) temperature is applied
vectors.py       answers that are no classes
support.py       some classes by name and all others as one bucket
mixture.py       several teachers as one
calibration.py   how far confidences can be believed: one figure, one rule, whoever measures it
"""
