"""What this machine can run: checks with a remedy each."""
