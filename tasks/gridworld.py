"""Tabular agents in random gridworlds, updated by a learned rule: where LPG is meta-trained.

Source: Jackson et al., arXiv:2310.02782, the levels "all"; EmptyJackson/groove.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Key, Params, PyTree, Rollout, UpdateRule
from metaopt.errors import UserError
from tasks import gridworld_env as env
from tasks.gridworld_env import GridState, Level

NUM_ACTIONS = len(env.MOVES)
POLICY = "logits"  # head of the policy, as in core.UpdateRule


class Training(NamedTuple):
    params: Params  # {head: (num_observations, *shape)}
    rule_state: PyTree
    envs: GridState  # of num_envs episodes
    returns: jax.Array  # (num_envs,) of these episodes so far


@dataclasses.dataclass(frozen=True)
class GridWorld:
    """A step is a rollout of ``num_envs`` environments and one update of the agent by gradient descent.

        params[head] <- params[head] - rate min(1, clip / |g|) g,   g = d rule.loss / d params[head]

    An agent is a table for each head, with a row for each cell and set of objects that are present: a linear
    function without a bias of one-hot observations. Environments go on from one step to the next and begin
    anew when an episode is done. Settings are those of GROOVE, where the observation also had the time.

    The loss of a step is minus the mean return of the episodes that ended in it; where none ended, it is minus
    the mean reward of its steps times the level's limit, the return of an episode that goes on like this. It
    is of the agent before the update, and has no derivative, because actions are drawn: estimators that
    differentiate it find zero, evolution strategies do not need it.

    Attributes:
      side, smallest: rows of the largest and of the smallest grid.
      num_objects: objects of a level, at most.
      num_walls: walls of the largest grid.
      shortest_limit, longest_limit: steps after which an episode is cut off.
      num_envs: episodes at a time.
      rollout_length: steps of each between two updates.
      predictions: heads of the agent besides "logits", as (name, shape); by default those of LPG.
      policy_rate: learning rate of the policy.
      prediction_rate: learning rate of the other heads.
      clip: largest norm of the gradient of each head.
      evaluation_envs: episodes of a measurement.
      evaluation_length: steps of each, at most; the return of an episode that goes on longer is that up to there.
      name: name of the task.
    """

    side: int = 10
    smallest: int = 4
    num_objects: int = 5
    num_walls: int = 15
    shortest_limit: int = 20
    longest_limit: int = 750
    num_envs: int = 64
    rollout_length: int = 20
    predictions: tuple[tuple[str, tuple[int, ...]], ...] = (("y", (8,)),)
    policy_rate: float = 40.0
    prediction_rate: float = 4.0
    clip: float = 0.5
    evaluation_envs: int = 64
    evaluation_length: int = 750
    name: str = "gridworld"
    solved_by: tuple[str, ...] = ("update_rule",)

    def __post_init__(self) -> None:
        counts = ("num_objects", "shortest_limit", "num_envs", "rollout_length", "evaluation_envs", "evaluation_length")
        for field in counts:
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if not 2 <= self.smallest <= self.side or not self.shortest_limit <= self.longest_limit:
            raise ValueError(f"need 2 <= smallest <= side and shortest_limit <= longest_limit, got {self}")
        if not 0 <= self.num_walls < self.smallest**2:
            raise ValueError(f"the smallest grid needs a free cell, num_walls < smallest^2, got {self}")
        if not self.clip > 0:
            raise ValueError(f"clip must be above 0, got {self.clip}")

    def traits(self) -> dict[str, Any]:
        architecture = {
            "side": [self.smallest, self.side],
            "objects": [1, self.num_objects],
            "limit": [self.shortest_limit, self.longest_limit],
        }
        return {"family": "gridworld", "datasets": [], "architecture": architecture}

    def sample(self, key: Key) -> Level:
        limits = (self.shortest_limit, self.longest_limit)
        return env.sample_level(key, self.side, self.smallest, self.num_objects, self.num_walls, limits)

    def init(self, task_params: Level, key: Key) -> Params:
        """A table for each head, normal of scale 1/sqrt(num_observations): all but uniform probabilities."""
        del task_params
        num = env.num_observations(self.side, self.num_objects)
        heads = sorted(self._heads().items())
        keys = jax.random.split(key, len(heads))
        return {
            head: jax.random.normal(k, (num, *shape)) / jnp.sqrt(num)
            for k, (head, shape) in zip(keys, heads, strict=True)
        }

    def start(self, algorithm: UpdateRule, task_params: Level, x: Params) -> Training:
        """Raises UserError for a rule whose heads are not those of the agent."""
        asked, ours = dict(algorithm.heads(NUM_ACTIONS)), self._heads()
        if asked != ours:
            predictions = tuple((head, shape) for head, shape in asked.items() if head != POLICY)
            raise UserError(
                f"task {self.name}: the rule asks for heads {asked}, the agent has {ours}: "
                f"set predictions={predictions} of the task"
            )
        envs = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.num_envs, *leaf.shape)), env.reset(task_params))
        return Training(x, algorithm.init(x), envs, jnp.zeros(self.num_envs))

    def step(self, algorithm: UpdateRule, task_params: Level, state: Training, key: Key) -> tuple[Training, jax.Array]:
        """One update of the agent; see the class for the loss."""
        params, rule_state, envs, returns = state
        rollout, envs = collect(task_params, params, envs, key, self.rollout_length)

        def sum_up(total: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            rewards, done = step
            total = total + rewards
            return jnp.where(done, 0.0, total), jnp.where(done, total, 0.0)

        returns, returns_at_end = jax.lax.scan(sum_up, returns, (rollout.rewards, rollout.done))
        num_ended = jnp.sum(rollout.done)
        going_on = jnp.mean(rollout.rewards) * task_params.limit
        mean_return = jnp.where(num_ended > 0, jnp.sum(returns_at_end) / jnp.maximum(num_ended, 1), going_on)

        loss = lambda params: algorithm.loss(act, params, rollout, rule_state)
        grads, rule_state = jax.grad(loss, has_aux=True)(params)
        params = {head: self._descend(head, params[head], grads[head]) for head in params}
        return Training(params, rule_state, envs, returns), -mean_return

    def solution(self, state: Training) -> Params:
        return state.params

    def evaluate(self, task_params: Level, x: Params, split: str, key: Key | None = None) -> dict[str, jax.Array]:
        """Mean return of fresh episodes, and the fraction of them that ended within ``evaluation_length``."""
        del split  # levels, not steps, are held out
        key = jax.random.key(0) if key is None else key
        reset = env.reset(task_params)
        envs = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (self.evaluation_envs, *leaf.shape)), reset)
        rollout, _ = collect(task_params, x, envs, key, self.evaluation_length)
        num_done = jnp.cumsum(rollout.done, axis=0)
        is_first = num_done - rollout.done == 0  # no earlier step ended the episode
        mean_return = jnp.mean(jnp.sum(jnp.where(is_first, rollout.rewards, 0.0), axis=0))
        return {"loss": -mean_return, "return": mean_return, "ended": jnp.mean(num_done[-1] > 0)}

    def _heads(self) -> dict[str, tuple[int, ...]]:
        return {POLICY: (NUM_ACTIONS,), **dict(self.predictions)}

    def _descend(self, head: str, table: jax.Array, grad: jax.Array) -> jax.Array:
        # Policy and prediction are clipped apart from each other, as two networks with an optimizer each.
        shrink = self.clip / jnp.sqrt(jnp.maximum(jnp.sum(grad**2), self.clip**2))  # has a derivative at zero too
        rate = self.policy_rate if head == POLICY else self.prediction_rate
        return table - rate * shrink * grad


def act(params: Params, observations: jax.Array) -> dict[str, jax.Array]:
    """The agent, see ``core.Agent``: each head's row of the observation."""
    return {head: table[observations] for head, table in params.items()}


def collect(level: Level, params: Params, envs: GridState, key: Key, num_steps: int) -> tuple[Rollout, GridState]:
    """Lets an agent act in a batch of environments, which begin anew when they are done.

    Args:
      level: the level of all of them.
      params: of the agent.
      envs: where each stands, (B, ...).
      key: random key.
      num_steps: T.
    """

    def step_one(state: GridState, action: jax.Array, key: Key) -> tuple[GridState, env.Outcome]:
        state, outcome = env.step(level, state, action, key)
        return jax.tree.map(lambda new, old: jnp.where(outcome.done, new, old), env.reset(level), state), outcome

    observe = jax.vmap(env.observe, in_axes=(None, 0))

    def step(envs: GridState, key: Key) -> tuple[GridState, tuple]:
        k_actions, k_envs = jax.random.split(key)
        observations = observe(level, envs)
        logits = params[POLICY][observations]
        actions = jax.random.categorical(k_actions, logits).astype(jnp.int32)
        envs, outcome = jax.vmap(step_one)(envs, actions, jax.random.split(k_envs, len(actions)))
        return envs, (observations, actions, *outcome, logits)

    envs, (observations, *others) = jax.lax.scan(step, envs, jax.random.split(key, num_steps))
    observations = jnp.concatenate([observations, observe(level, envs)[None]])
    return Rollout(observations, *others), envs
