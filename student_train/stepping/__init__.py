"""A student's changing state, and how a step is taken: alone, stacked, in parts, recorded, in parallel.

state.py       all that a step changes: student, optimiser, average, random numbers
alone.py       the stepper of one student
stack/         the stepper of many students as one program
forward.py     a student's forward pass: tried once, its layers tapped, compiled
gradients.py   forward, losses, backward, and each term's share
positions.py   the same for tokens, a part of the positions at a time
recorder.py    steps as CUDA graphs
parallel.py    one student on several processes
schedule.py    the learning rate of every step
average.py     the moving average of weights
tally.py       losses of an epoch, kept on the device
"""
