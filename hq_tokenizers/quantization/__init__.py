"""Quantisers: the differentiable core, the stochastic and the deterministic ones, and codebook health."""
