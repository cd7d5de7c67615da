"""A student's changing state, and how a step is taken: alone, stacked, in parts, recorded, in parallel.

state.py       all that a step changes: student, optimiser, average, random numbers
stepper.py     what takes steps, whichever of the two next
alone.py       the stepper of one student
stack/         the stepper of many students as one program
forward.py     a student's forward pass: tried once, its layers tapped, compiled
gradients/     forward, losses, backward, and each term's share
recompute.py   blocks that run again in the backward pass
recorder.py    steps as CUDA graphs
parallel.py    one student on several processes
schedule.py    the learning rate of every step
average.py     the moving average of weights
tally.py       losses of an epoch, kept on the device
"""
