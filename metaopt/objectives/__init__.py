"""Families of kind "drift" and "update_rule": terms and losses of reinforcement learning, one file each."""
