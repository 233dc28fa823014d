"""Progressive expert forcing: a hand-written optimizer leads at first and is imitated.

An untrained optimizer sees only the states that it leads to itself, and they are bad.
With an expert's update E and the learned one U, the parameters move by

    w E + (1 - w) U,      w = 1 until outer step ``until``, then linearly to 0 at ``gone``

and the loss of a step is (1 - c w) loss + c w (1 - cos(E, U)), c = ``imitation``. An
episode keeps the w it began with.

On the small recipe digits-quick it did not help (``python -m tests.bench.ablations``, three
meta-training seeds): validation loss after 500 steps 0.031 to 0.055 with AdamW fading
until half of the run, without imitation 0.042 to 0.096, and 0.024 to 0.039 without an
expert.

Source: ELO (progressive teacher forcing; there also the sizes of the updates are
matched, and differences of losses are scaled over a window).
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from metaopt import optimizers
from metaopt.core import LearnedOptimizer
from metaopt.errors import UserError

LARGEST = 2.0  # disagreement


@dataclasses.dataclass(frozen=True)
class Expert:
    """Attributes:
    rule: a rule of the ``hand`` family.
    learning_rate: of the expert, constant.
    until, gone: outer steps.
    imitation: c, the share of the loss that is imitation while the expert leads.
    """

    rule: str = "adamw"
    learning_rate: float = 1e-3
    until: int = 0
    gone: int = 100
    imitation: float = 0.5

    def __post_init__(self):
        if not 0 <= self.until < self.gone:
            raise UserError(f"an expert needs 0 <= until < gone, got {self.until} and {self.gone}")
        if not 0 <= self.imitation <= 1:
            raise UserError(f"imitation is a share between 0 and 1, got {self.imitation}")
        self._hand()  # refuses an unknown rule

    def optimizer(self) -> optax.GradientTransformation:
        hand = self._hand()
        return hand.bind(hand.init(jax.random.key(0)))

    def _hand(self) -> LearnedOptimizer:
        return optimizers.build("hand", rule=self.rule, learning_rate=self.learning_rate)

    def weight(self, outer_step: jax.Array | int) -> jax.Array:
        """() w of an episode that begins at ``outer_step``."""
        return 1.0 - jnp.clip((jnp.asarray(outer_step) - self.until) / (self.gone - self.until), 0.0, 1.0)


def blend(weight: jax.Array, expert, learned):
    """w E + (1 - w) U."""
    # While the expert leads alone, an update that is not finite does no harm.
    return jax.tree.map(lambda e, u: jnp.where(weight >= 1, e, weight * e + (1 - weight) * u), expert, learned)


def disagreement(expert, learned) -> jax.Array:
    """() 1 - cos(E, U) over all parameters, 0 where the directions agree."""
    square = lambda tree: optax.tree.norm(tree, squared=True)
    # Inside the root: an update of zero has a derivative too.
    lengths = jnp.sqrt(square(expert) * square(learned) + 1e-24)
    return 1.0 - jnp.asarray(optax.tree.vdot(expert, learned)) / lengths
