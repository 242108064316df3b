"""Checkpoints of other packages as tokenizers of this one: a file for each layout.

Internal: the command `convert` is what stays the same.
"""
