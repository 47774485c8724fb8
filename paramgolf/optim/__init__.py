"""Muon, AdamW, schedules as data, weight averaging."""
