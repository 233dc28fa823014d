"""What there is to optimize: task families, their data, and named suites of them."""

from tasks.augment import Reparametrized
from tasks.gridworld import GridWorld
from tasks.image_conv import ImageConv
from tasks.image_mlp import ImageMLP
from tasks.lasso import Lasso
from tasks.ppo import PPO
from tasks.quadratic import Quadratic
from tasks.supervised import Supervised

TASKS = {
    "gridworld": GridWorld,
    "image_conv": ImageConv,
    "image_mlp": ImageMLP,
    "lasso": Lasso,
    "ppo": PPO,
    "quadratic": Quadratic,
}

__all__ = ["PPO", "TASKS", "GridWorld", "ImageConv", "ImageMLP", "Lasso", "Quadratic", "Reparametrized", "Supervised"]
