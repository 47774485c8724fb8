"""What a run is doing, read from what it leaves: its log, its output and the system's tables."""
