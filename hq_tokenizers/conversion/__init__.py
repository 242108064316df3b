"""Checkpoints of other packages as tokenizers of this one: a file for each layout."""
