"""The laboratory: variants of recipes trained side by side, and what can be told from them."""
