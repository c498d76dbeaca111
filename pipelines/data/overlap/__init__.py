"""Find what a split shares with later splits."""
