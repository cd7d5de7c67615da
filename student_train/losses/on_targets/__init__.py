"""Losses on soft targets: each a function of logits and targets, and its term.

kd.py            knowledge distillation; T² is the last factor of each loss that has it
divergences.py   reverse and skewed KL, JSD, total variation
decoupled.py     DKD and NKD: the label and the other classes apart
standardised.py  KD of standardised logits
dist.py          DIST: correlations
logit_mse.py     logits as they are
sampled.py       random and stratified sampling, unbiased
approximate.py   marginal smoothing, top-k scaled up: to compare with
soft.py          what they share: teachers, their mixture, means over sites
"""
