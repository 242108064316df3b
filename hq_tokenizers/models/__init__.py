"""Pixels to codes and back: what is saved and loaded. Each modeling file is readable beside its paper."""
