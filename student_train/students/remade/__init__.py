"""Layers that are other than their architecture builds them, as `student make` has remade them.

changes.py   what is said of each, as data in the blueprint
rebuild.py   a network from its architecture and these
products.py  layers that are a product with weights: linear ones and convolutions
factors.py   one as two of lower rank
int8.py      one whose weights are codes, or are rounded to what will be codes while they are trained
size.py      how large it is then
"""
