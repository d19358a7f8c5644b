"""What takes the local steps of a slot."""
