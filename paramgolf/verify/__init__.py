"""The contest's rules as checks over the metrics of a run."""
