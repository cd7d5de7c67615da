"""Teachers.

teachers.py   what a job says of them, what the cache is promised, and how one is loaded
"""
