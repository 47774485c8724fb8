"""The shipped program: what goes into train_gpt.py, and the artifact as a whole."""
