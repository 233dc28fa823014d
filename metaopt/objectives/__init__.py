"""Learned objectives: update rules, whose loss of a rollout updates an agent."""
