"""What a student begins as, before its first step.

start.py     weights that it starts from, taken by name and shape
"""
