"""Losses on features: each a function of a layer and a feature, and its term; `features.py` has what they share."""
