"""What is promised, measured against a baseline in the same run; never a timed test."""
