"""What there is to optimise: task families, their data, and named suites of them."""

from tasks.augment import Reparametrised
from tasks.image_conv import ImageConv
from tasks.image_mlp import ImageMLP
from tasks.lasso import Lasso
from tasks.quadratic import Quadratic

TASKS = {"image_conv": ImageConv, "image_mlp": ImageMLP, "lasso": Lasso, "quadratic": Quadratic}

__all__ = ["TASKS", "ImageConv", "ImageMLP", "Lasso", "Quadratic", "Reparametrised"]
