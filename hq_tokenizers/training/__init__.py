"""Stage one, and what both training stages share: options, loop, checkpoints, tracking, evaluation, figures.

This package's `options` and `config` import no torch, so that the command line can explain itself at once.
"""
