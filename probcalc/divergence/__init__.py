"""How far one distribution is from another, for any pair, and how that is known."""
