"""Sliding-window and score-first adaptive evaluation, the ledger."""
