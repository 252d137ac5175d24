"""Evaluation around a model: views, refinement, tiles, prediction of files, export."""
