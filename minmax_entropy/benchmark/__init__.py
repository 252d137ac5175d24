"""Methods compared on one data set."""
