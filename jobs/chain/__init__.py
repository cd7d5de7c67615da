"""`student chain`: students that teach the next students, generation after generation.

chain.py     the story: asked, trained, asked; what is there already is left as it is
foretell.py  what that would do
"""
