"""Comparison of methods on one data set."""
