"""A job in pods of Kubernetes, which Dask's operator starts: only its YAML is made here, and nothing there is called.

manifest.py   the objects of a job; and what its cluster is within one of their pods
crds.py       what the operator takes, by its own schemas
"""
