"""What a student begins as, before its first step.

start.py      weights that it starts from, taken by name and shape
converted.py  these by the model's names, where the library stores them under others
adapter.py    products of low rank on top of these, which then stay as they are
"""
