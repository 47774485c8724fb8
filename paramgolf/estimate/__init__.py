"""What a recipe will cost, from its parameters alone; nothing here needs torch or a GPU."""
