"""Terms of the objectives."""
