"""The peak memory of a worker, bounded from the job before anything runs.

What a worker holds: the libraries; the teacher's weights; the activations of one batch; and, since one task reads or
writes while another computes, the inputs and answers of two shards. Memory does not depend on the size of the cache
(invariant 10).

A model's activations are measured on the meta device, which computes shapes and allocates nothing.
"""
