"""Building blocks that several optimizer families share."""
