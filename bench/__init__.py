"""The README's figures, each by one command."""
