"""Rows whose answer is a vector: from a teacher that gives embeddings to a student that does."""
