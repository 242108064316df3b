"""What a user may set, and how it is read. Nothing here imports torch, so that the command line answers at once."""
