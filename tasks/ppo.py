"""Training an agent by PPO: one step is one update, a rollout and some epochs on it."""

import dataclasses
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.core import Algorithm, Key, Params, PyTree
from metaopt.errors import UserError
from tasks import advantages, agents, environments
from tasks.agents import Categorical, Normal

ADAM_EPS = 1e-5
NUM_EVALUATED = 32  # episodes behind a thorough measurement
QUICKLY_EVALUATED = 8  # and behind one with a key


class Batch(NamedTuple):
    """Steps of a rollout, (T, B, ...) or flat."""

    observations: jax.Array
    actions: jax.Array
    log_probs: jax.Array  # of the actions, when they were drawn
    values: jax.Array  # of the critic, when the rollout ended
    advantages: jax.Array
    targets: jax.Array  # of the critic


class Experience(NamedTuple):
    """What T steps in B environments were."""

    observations: jax.Array  # (T, B, num_features)
    last_observations: jax.Array  # (T, B, num_features), where done of the episode that ended
    actions: jax.Array  # (T, B) or (T, B, coordinates)
    log_probs: jax.Array  # (T, B)
    rewards: jax.Array  # (T, B)
    terminated: jax.Array  # (T, B) bool
    done: jax.Array  # (T, B) bool
    returns: jax.Array  # (T, B) of the episode so far, that step included


class State(NamedTuple):
    """An agent in training."""

    params: Params  # {"actor": layers, "critic": layers}, with continuous actions "log_std" too
    opt_state: PyTree
    update: jax.Array  # () int32, updates done
    env_state: PyTree  # of B environments
    observations: jax.Array  # (B, num_features)
    returns: jax.Array  # (B,) of the unfinished episodes
    lengths: jax.Array  # (B,) int32 of the unfinished episodes
    mean_return: jax.Array  # () of the episodes that ended last


@dataclasses.dataclass(frozen=True)
class PPO:
    """Proximal policy optimization on an environment of gymnax.

    The policy is improved by maximizing, on minibatches with advantages A of zero mean and unit variance,

        mean(r A - drift(log r, A, progress)) - value_weight loss of the critic + entropy_weight entropy

    A "drift" takes the place of PPO's clipping and is trained by Adam with a rate that falls linearly to
    zero; an "optimizer" takes the place of Adam, with PPO's clipping and gradients clipped by the norms of
    actor and critic.

    The loss of a step is minus the mean return of the episodes that ended in it. Where none has ended since
    training began, episodes count as if they went on like that to their limit of time: an agent gains
    nothing by not finishing.

    Attributes:
      environment: name of gymnax.
      num_updates: planned length of training in updates: what progress and the learning rate go by.
      num_environments: environments side by side.
      rollout_steps: steps of each in an update.
      num_epochs: passes over a rollout.
      num_minibatches: gradient steps of a pass.
      width: units of the hidden layers.
      depth: hidden layers of actor and of critic.
      learning_rate: of Adam, at the start.
      discount: of rewards.
      decay: of advantages over more steps.
      clip: of the ratio, where there is no other drift, and of the critic's change.
      value_weight: of the critic's loss.
      entropy_weight: of the policy's entropy.
      max_norm: gradients are clipped to this norm.
      varied: parameters of the environment that are drawn for each problem: (name, smallest, largest).
      name: of the task; "" for that of the environment.
    """

    environment: str = "CartPole-v1"
    num_updates: int = 48
    num_environments: int = 8
    rollout_steps: int = 64
    num_epochs: int = 4
    num_minibatches: int = 4
    width: int = 64
    depth: int = 2
    learning_rate: float = 2.5e-4
    discount: float = 0.99
    decay: float = 0.95
    clip: float = 0.2
    value_weight: float = 0.5
    entropy_weight: float = 0.01
    max_norm: float = 0.5
    varied: tuple[tuple[str, float, float], ...] = ()
    name: str = ""
    solved_by: tuple[str, ...] = ("drift", "optimizer")

    def __post_init__(self) -> None:
        for field in ("num_updates", "num_environments", "rollout_steps", "num_epochs", "num_minibatches", "width"):
            if getattr(self, field) < 1:
                raise UserError(f"{field} must be at least 1, got {getattr(self, field)}")
        if self.num_environments * self.rollout_steps % self.num_minibatches:
            raise UserError(
                f"a rollout of {self.num_environments} x {self.rollout_steps} steps cannot be cut into "
                f"{self.num_minibatches} minibatches of one size"
            )
        object.__setattr__(self, "name", self.name or f"ppo-{self.environment.lower()}")

    @property
    def env(self) -> environments.Environment:
        return environments.build(self.environment)

    def traits(self) -> dict[str, Any]:
        sizes = {"width": [self.width] * 2, "depth": [self.depth] * 2, "updates": [self.num_updates] * 2}
        return {"family": "ppo", "datasets": [self.environment], "architecture": sizes}

    def sample(self, key: Key) -> PyTree:
        """Parameters of the environment."""
        params = self.env.params
        fields = {field.name for field in dataclasses.fields(params)}
        for i, (name, low, high) in enumerate(self.varied):
            if name not in fields:
                raise UserError(f"{self.environment} has no parameter {name!r}, it has {', '.join(sorted(fields))}")
            drawn = jax.random.uniform(jax.random.fold_in(key, i), minval=low, maxval=high)
            params = params.replace(**{name: drawn})
        return jax.tree.map(jnp.asarray, params)

    def init(self, task_params: PyTree, key: Key) -> Params:
        """Orthogonal weights and zero biases."""
        del task_params
        k_actor, k_critic = jax.random.split(key)
        hidden = (self.env.num_features, *[self.width] * self.depth)
        params = {
            "actor": agents.init_network(k_actor, (*hidden, self.env.num_actions), agents.POLICY_GAIN),
            "critic": agents.init_network(k_critic, (*hidden, 1), agents.VALUE_GAIN),
        }
        if not self.env.is_discrete:
            params["log_std"] = jnp.zeros(self.env.num_actions)
        return params

    def start(self, algorithm: Algorithm, task_params: PyTree, x: Params) -> State:
        env_state, observations = self._reset_environments(jax.random.key(0), task_params, self.num_environments)
        return State(
            params=x,
            opt_state=self._optimizer(algorithm, 0.0).init(x),
            update=jnp.zeros((), jnp.int32),
            env_state=env_state,
            observations=observations,
            returns=jnp.zeros(self.num_environments),
            lengths=jnp.zeros(self.num_environments, jnp.int32),
            mean_return=jnp.float32(jnp.nan),
        )

    def step(self, algorithm: Algorithm, task_params: PyTree, state: State, key: Key) -> tuple[State, jax.Array]:
        k_reset, k_rollout, k_epochs = jax.random.split(key, 3)
        state = self._begin(task_params, state, k_reset)
        state, experience = self._roll_out(task_params, state, k_rollout)
        progress = jnp.minimum(state.update / self.num_updates, 1.0)
        params, opt_state = self._improve(algorithm, progress, state, self._assess(state, experience), k_epochs)
        mean_return = _mean_return(experience, state, self.env.time_limit)
        state = state._replace(params=params, opt_state=opt_state, update=state.update + 1, mean_return=mean_return)
        return state, -mean_return

    def solution(self, state: State) -> Params:
        return state.params

    def evaluate(self, task_params: PyTree, x: Params, split: str, key: Key | None = None) -> dict[str, jax.Array]:
        """The mean return of whole episodes of the agent as it stands, and minus that as "loss"."""
        del split  # an agent is measured where it lives
        num = NUM_EVALUATED if key is None else QUICKLY_EVALUATED
        k_reset, k_steps = jax.random.split(jax.random.key(0) if key is None else key)
        env_state, observations = self._reset_environments(k_reset, task_params, num)

        def step(carry: tuple, t: jax.Array) -> tuple[tuple, None]:
            env_state, observations, total, alive = carry
            k_act, k_env = jax.random.split(jax.random.fold_in(k_steps, t))
            actions = self._policy(x, observations).sample(k_act)
            after = self._step_environments(k_env, env_state, actions, task_params)
            total = total + alive * after.reward
            return (after.state, after.observation, total, alive & ~after.done), None

        start = (env_state, observations, jnp.zeros(num), jnp.ones(num, bool))
        (_, _, total, _), _ = jax.lax.scan(step, start, jnp.arange(self.env.time_limit))
        return {"loss": -jnp.mean(total), "return": jnp.mean(total)}

    def _policy(self, params: Params, observations: jax.Array) -> Categorical | Normal:
        output = agents.layer_outputs(params["actor"], observations)[-1]
        return Categorical(output) if self.env.is_discrete else Normal(output, params["log_std"])

    def _values(self, params: Params, observations: jax.Array) -> jax.Array:
        return agents.layer_outputs(params["critic"], observations)[-1][..., 0]

    def _step_environments(
        self, key: Key, env_state: PyTree, actions: jax.Array, task_params: PyTree
    ) -> environments.Transition:
        keys = jax.random.split(key, len(actions))
        return jax.vmap(self.env.step, (0, 0, 0, None))(keys, env_state, actions, task_params)

    def _reset_environments(self, key: Key, task_params: PyTree, num: int) -> tuple[PyTree, jax.Array]:
        return jax.vmap(self.env.reset, (0, None))(jax.random.split(key, num), task_params)

    def _begin(self, task_params: PyTree, state: State, key: Key) -> State:
        """The environments begin at the first step, which has a random key as ``start`` has not."""
        fresh = self._reset_environments(key, task_params, self.num_environments)
        old = (state.env_state, state.observations)
        env_state, observations = jax.tree.map(lambda x, y: jnp.where(state.update == 0, x, y), fresh, old)
        return state._replace(env_state=env_state, observations=observations)

    def _roll_out(self, task_params: PyTree, state: State, key: Key) -> tuple[State, Experience]:
        """Steps with the policy as it stands; returns the state with the environments as they then are."""

        def step(carry: tuple, t: jax.Array) -> tuple[tuple, Experience]:
            env_state, observations, returns, lengths = carry
            k_act, k_env = jax.random.split(jax.random.fold_in(key, t))
            policy = self._policy(state.params, observations)
            actions = policy.sample(k_act)
            after = self._step_environments(k_env, env_state, actions, task_params)
            returns, lengths = returns + after.reward, lengths + 1
            seen = Experience(
                observations,
                after.last_observation,
                actions,
                policy.log_prob(actions),
                after.reward,
                after.terminated,
                after.done,
                returns,
            )
            going_on = ~after.done
            return (after.state, after.observation, returns * going_on, lengths * going_on), seen

        start = (state.env_state, state.observations, state.returns, state.lengths)
        (env_state, observations, returns, lengths), experience = jax.lax.scan(
            step, start, jnp.arange(self.rollout_steps)
        )
        state = state._replace(env_state=env_state, observations=observations, returns=returns, lengths=lengths)
        return state, experience

    def _assess(self, state: State, experience: Experience) -> Batch:
        """The rollout with advantages and targets, as one flat batch."""
        observations = jnp.concatenate([experience.observations, state.observations[None]])
        values = self._values(state.params, observations)
        at_end = self._values(state.params, experience.last_observations)
        values, after = values[:-1], jnp.where(experience.done, at_end, values[1:])
        estimates = advantages.generalized(
            experience.rewards, values, after, experience.terminated, experience.done, self.discount, self.decay
        )
        batch = Batch(
            experience.observations, experience.actions, experience.log_probs, values, estimates, estimates + values
        )
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

    def _improve(
        self, algorithm: Algorithm, progress: jax.Array, state: State, batch: Batch, key: Key
    ) -> tuple[Params, PyTree]:
        """The epochs of an update; returns parameters and the state of the optimizer."""
        tx = self._optimizer(algorithm, progress)
        size = len(batch.log_probs)

        def step(
            carry: tuple[Params, PyTree], places_and_key: tuple[jax.Array, Key]
        ) -> tuple[tuple[Params, PyTree], None]:
            params, opt_state = carry
            places, k_step = places_and_key
            minibatch = jax.tree.map(lambda x: x[places], batch)

            def value_fn(params: Params) -> jax.Array:
                return self._loss(algorithm, progress, params, minibatch)

            value, grads = jax.value_and_grad(value_fn)(params)
            updates, opt_state = tx.update(
                grads,
                opt_state,
                params,
                value=value,
                value_fn=value_fn,
                key=k_step,
                activations=self._activity(params, minibatch),
            )
            return (optax.apply_updates(params, updates), opt_state), None

        k_orders, k_steps = jax.random.split(key)
        order_of = jax.vmap(lambda key: jax.random.permutation(key, size))
        orders = order_of(jax.random.split(k_orders, self.num_epochs)).reshape(-1, size // self.num_minibatches)
        keys = jax.random.split(k_steps, len(orders))
        (params, opt_state), _ = jax.lax.scan(step, (state.params, state.opt_state), (orders, keys))
        return params, opt_state

    def _loss(self, algorithm: Algorithm, progress: jax.Array, params: Params, batch: Batch) -> jax.Array:
        policy, values = self._policy(params, batch.observations), self._values(params, batch.observations)
        log_ratio = policy.log_prob(batch.actions) - batch.log_probs
        advantage = (batch.advantages - jnp.mean(batch.advantages)) / (jnp.std(batch.advantages) + 1e-8)
        objective = jnp.exp(log_ratio) * advantage
        if _is_optimizer(algorithm):
            objective = jnp.minimum(objective, jnp.clip(jnp.exp(log_ratio), 1 - self.clip, 1 + self.clip) * advantage)
        else:
            objective = objective - algorithm(log_ratio, advantage, progress=progress)
        change = jnp.clip(values - batch.values, -self.clip, self.clip)
        errors = jnp.maximum((values - batch.targets) ** 2, (batch.values + change - batch.targets) ** 2)
        critic = 0.5 * jnp.mean(errors)
        return -jnp.mean(objective) + self.value_weight * critic - self.entropy_weight * jnp.mean(policy.entropy())

    def _activity(self, params: Params, batch: Batch) -> Params:
        of_networks = {name: agents.activity(params[name], batch.observations) for name in ("actor", "critic")}
        return of_networks if self.env.is_discrete else of_networks | {"log_std": jnp.ones(self.env.num_actions)}

    def _optimizer(self, algorithm: Algorithm, progress: jax.Array | float) -> optax.GradientTransformationExtraArgs:
        if _is_optimizer(algorithm):
            by_network: dict[Hashable, optax.GradientTransformation] = {
                name: optax.clip_by_global_norm(self.max_norm) for name in ("actor", "critic", "log_std")
            }
            clip = optax.partition(by_network, lambda params: {name: name for name in params})
            return optax.with_extra_args_support(optax.chain(clip, algorithm))
        rate = self.learning_rate * (1.0 - progress)  # constant within an update
        adam = optax.chain(optax.clip_by_global_norm(self.max_norm), optax.scale_by_adam(eps=ADAM_EPS))
        return optax.with_extra_args_support(optax.chain(adam, optax.scale(-rate)))


def _is_optimizer(algorithm: Algorithm) -> bool:
    return isinstance(algorithm, optax.GradientTransformation)


def _mean_return(experience: Experience, state: State, time_limit: int) -> jax.Array:
    """The mean return of the episodes that ended in a rollout; else what it was before, see ``PPO``."""
    num = jnp.sum(experience.done)
    ended = jnp.sum(experience.returns * experience.done) / jnp.maximum(num, 1)
    at_limit = jnp.mean(state.returns / jnp.maximum(state.lengths, 1)) * time_limit
    before = jnp.where(jnp.isnan(state.mean_return), at_limit, state.mean_return)
    return jnp.where(num > 0, ended, before)
