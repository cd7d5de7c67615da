"""Tests of the losses, a file for each family."""
