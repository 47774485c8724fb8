"""Bits per byte, sliding-window and score-first adaptive evaluation, the ledger."""
