"""Layers that are other than their architecture builds them, as `student make` has remade them.

changes.py   what is said of each, as data in the blueprint
rebuild.py   a network from its architecture and these
size.py      how large it is then
"""
