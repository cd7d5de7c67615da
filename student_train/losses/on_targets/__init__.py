"""Losses on soft targets: each a function of logits and targets, and its term; `soft.py` has what they share."""
