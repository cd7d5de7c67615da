"""What a job will take, before any of it runs: memory, which is bounded, and work.

blank.py         batches of nothing, to measure with
step_memory.py   what one student's step takes, measured on the meta device
feed_memory.py   what the feeds hold
projection.py    both together, the peak of a whole job; what does not fit is given up or refused
flops.py         how much work a student is
"""
