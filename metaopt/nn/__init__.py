"""Networks that learned algorithms are built from."""
