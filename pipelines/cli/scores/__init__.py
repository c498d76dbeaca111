"""What `enigma score` keeps while it works, and what it writes at the end."""
