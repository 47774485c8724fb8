"""Parameter golf as a staged, reproducible pipeline; importing the package changes nothing."""
