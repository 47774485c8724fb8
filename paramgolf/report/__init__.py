"""Checks of the rules, tables, plots and the report page."""
