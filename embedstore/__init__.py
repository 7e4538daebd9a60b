"""embedstore: a collision-less embedding store for PyTorch that learns from a live stream."""
