"""Data to weights, both stages side by side: a `Stage` each, one loop, and the encoding between them."""
