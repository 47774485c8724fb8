"""The folder that is handed in: collected, checked, described, and run before it is called done."""
