"""Disco103: a rule for updating agents that was itself found by meta-learning.

Source: Oh et al., "Discovering state-of-the-art reinforcement learning algorithms", Nature, 2025,
doi:10.1038/s41586-025-09761-x; google-deepmind/disco_rl.
"""

from metaopt.objectives.disco.rule import Config, State, build

__all__ = ["Config", "State", "build"]
