"""Tokens that stand for a space and the case mark after it, where markers are fused (#2109)."""

# TITLE, ALL_CAPS and CAP_NEXT after a space: the byte-fallback tokens of U+0000 to U+0002
ALIASES = (8, 9, 10)
