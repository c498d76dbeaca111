"""What train shares with validation and test."""
