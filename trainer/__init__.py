"""The online trainer: reads activity streams, learns, pushes to embedstore."""
