"""What to remove: layers, tokens, channels, within a budget; and which passes follow."""
