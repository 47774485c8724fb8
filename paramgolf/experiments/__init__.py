"""Runs of the pipeline, gathered from Git and the working folder, and compared."""
