"""The gradients of one student's step, and each term's share of them.

rows.py        of whole rows at once: forward, losses, backward
sites.py   of rows of many sites: head and losses a part of the sites at a time
parts.py       of some rows of a batch at a time (`micro_batch_size`)
ways.py        which of the two, by what a task says
"""
