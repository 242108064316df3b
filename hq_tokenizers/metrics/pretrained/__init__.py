"""Feature networks and their weight files."""
