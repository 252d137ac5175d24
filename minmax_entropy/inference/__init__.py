"""What evaluation adds around a model: views, refinement, tiles, prediction of files, export."""
