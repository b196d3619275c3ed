"""What only makes evaluation faster: the same numbers without any of it."""
