"""Losses on features: each a function of a layer and a feature, and its term.

hint.py        FitNets: the distance to a feature
cosine.py      the angle to it
vid.py         how likely it is, given the student's layer
attention.py   attention transfer: where a map has its energy
relations.py   RKD, similarity preserving, PKT: how rows relate to each other
crd.py         each row's own feature told from others
features.py    what they share: the way from a layer to a feature
"""
