"""Sums over what a process has seen, which merge into the sums over everything."""
