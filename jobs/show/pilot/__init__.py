"""What `cache plan` found.

tables.py  as a table of 80 columns and as JSON
plot.py    bytes against fidelity, as a picture
scale.py   what a job of another size would cost, and what would stop it
"""
