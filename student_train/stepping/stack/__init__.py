"""Stacks: students of one architecture as one program, which end where each would have ended alone.

weights.py  the memory: parameters as rows of one matrix, buffers side by side, the optimiser's update
model.py    forward pass and losses of all students, as functions of that matrix
step.py     the gradients of a step
stack.py    what steps: `Alone` for many
"""
