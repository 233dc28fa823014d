"""What the families are made of."""
