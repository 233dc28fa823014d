"""Training an agent by PPO: one step is one update, a rollout and some epochs on it.

Source: Schulman et al., "Proximal policy optimization algorithms", arXiv:1707.06347; with an optimizer in
the place of Adam as in Goldie et al., arXiv:2407.07082.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from metaopt.core import Algorithm, Drift, Key, Params, PyTree
from metaopt.errors import UserError
from tasks import agents, environments
from tasks.agents import Categorical, Normal
from tasks.experience import Batch, Experience, Unfinished, assess, mean_return

ADAM_EPS = 1e-5
NUM_EVALUATED, NUM_QUICKLY_EVALUATED = 32, 8  # episodes behind a thorough measurement, and one with a key
AT_LEAST_ONE = ("num_updates", "num_environments", "rollout_steps", "num_epochs", "num_minibatches", "width", "depth")


class State(NamedTuple):
    """An agent in training."""

    params: Params  # {"actor": layers, "critic": layers}, for continuous actions "log_std" too
    opt_state: PyTree
    update: jax.Array  # () int32, updates done
    env_state: PyTree  # of B environments
    observations: jax.Array  # (B, num_features)
    unfinished: Unfinished
    mean_return: jax.Array  # () of the episodes that ended last; NaN until one has


@dataclasses.dataclass(frozen=True)
class PPO:
    """Proximal policy optimization on an environment of gymnax.

    The policy is improved by maximizing, on minibatches with advantages A of zero mean and unit variance,

        mean(r A - drift(log r, A, progress)) - value_weight loss of the critic + entropy_weight entropy

    A "drift" is trained with by Adam, whose rate falls linearly to zero. An "optimizer" takes the place of
    Adam, with PPO's clipping as the drift; it is told its own number of steps, one for each minibatch. The loss
    of a step is minus the mean return of the episodes that ended in it, see ``experience.mean_return``.

    Attributes:
      environment: name that gymnax has for it.
      num_updates: planned length of training: progress and the learning rate go by it.
      num_environments: environments side by side.
      rollout_steps: steps of each in an update.
      num_epochs: passes over a rollout.
      num_minibatches: gradient steps of a pass.
      width: units of the hidden layers.
      depth: hidden layers of the actor, and of the critic.
      learning_rate: of Adam, at the start.
      discount: of rewards.
      decay: of advantages over more steps.
      clip: of the ratio, where no drift is given, and of the change of the critic's values.
      value_weight: of the critic's loss.
      entropy_weight: of the policy's entropy.
      max_norm: gradients are clipped to this norm; for an optimizer, those of actor and critic each.
      varied: parameters of the environment that are drawn for each problem: (name, smallest, largest).
      name: of the task; "" for one after the environment.
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
        for field in AT_LEAST_ONE:
            if getattr(self, field) < 1:
                raise UserError(f"{field} must be at least 1, got {getattr(self, field)}")
        if self.num_environments * self.rollout_steps % self.num_minibatches:
            raise UserError(
                f"the {self.num_environments} x {self.rollout_steps} steps of a rollout cannot be cut into "
                f"{self.num_minibatches} minibatches of one size: change one of the three"
            )
        object.__setattr__(self, "name", self.name or f"ppo-{self.environment.lower()}")

    @property
    def env(self) -> environments.Environment:
        return environments.build(self.environment)

    @property
    def calls_per_step(self) -> dict[str, int]:
        return {"optimizer": self.num_epochs * self.num_minibatches}

    def traits(self) -> dict[str, Any]:
        sizes = {"width": [self.width] * 2, "depth": [self.depth] * 2, "updates": [self.num_updates] * 2}
        return {"family": "ppo", "datasets": [self.environment], "architecture": sizes}

    def sample(self, key: Key) -> PyTree:
        """Parameters of the environment."""
        params = self.env.params
        names = sorted(field.name for field in dataclasses.fields(params))
        for i, (name, low, high) in enumerate(self.varied):
            if name not in names:
                raise UserError(f"{self.environment} has no parameter {name!r}, it has {', '.join(names)}")
            params = params.replace(**{name: jax.random.uniform(jax.random.fold_in(key, i), minval=low, maxval=high)})
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
        env_state, observations = self._reset(jax.random.key(0), task_params, self.num_environments)
        return State(
            params=x,
            opt_state=self._optimizer(algorithm, 0.0).init(x),
            update=jnp.zeros((), jnp.int32),
            env_state=env_state,
            observations=observations,
            unfinished=Unfinished(jnp.zeros(self.num_environments), jnp.zeros(self.num_environments, jnp.int32)),
            mean_return=jnp.float32(jnp.nan),
        )

    def step(self, algorithm: Algorithm, task_params: PyTree, state: State, key: Key) -> tuple[State, jax.Array]:
        k_reset, k_rollout, k_epochs = jax.random.split(key, 3)
        state, experience = self._roll_out(task_params, self._begin(task_params, state, k_reset), k_rollout)
        observations = jnp.concatenate([experience.observations, state.observations[None]])
        values = self._values(state.params, observations)
        at_end = self._values(state.params, experience.last_observations)
        batch = assess(experience, values, at_end, self.discount, self.decay)
        params, opt_state = self._improve(algorithm, state, batch, k_epochs)
        returned = mean_return(experience, state.unfinished, state.mean_return, self.env.time_limit)
        new = state._replace(params=params, opt_state=opt_state, update=state.update + 1, mean_return=returned)
        return new, -returned

    def solution(self, state: State) -> Params:
        return state.params

    def evaluate(self, task_params: PyTree, x: Params, split: str, key: Key | None = None) -> dict[str, jax.Array]:
        """The mean return of whole episodes of an agent that no longer learns, and minus that as "loss"."""
        del split  # an agent is measured where it lives
        num = NUM_EVALUATED if key is None else NUM_QUICKLY_EVALUATED
        k_reset, k_steps = jax.random.split(jax.random.key(0) if key is None else key)

        def step(carry: tuple, t: jax.Array) -> tuple[tuple, None]:
            env_state, observations, total, is_first = carry
            k_act, k_env = jax.random.split(jax.random.fold_in(k_steps, t))
            actions = self._policy(x, observations).sample(k_act)
            after = self._step_environments(k_env, env_state, actions, task_params)
            total = total + is_first * after.reward
            return (after.state, after.observation, total, is_first & ~after.done), None

        start = (*self._reset(k_reset, task_params, num), jnp.zeros(num), jnp.ones(num, bool))
        (_, _, total, _), _ = jax.lax.scan(step, start, jnp.arange(self.env.time_limit))
        return {"loss": -jnp.mean(total), "return": jnp.mean(total)}

    def _policy(self, params: Params, observations: jax.Array) -> Categorical | Normal:
        output = agents.apply_network(params["actor"], observations)
        return Categorical(output) if self.env.is_discrete else Normal(output, params["log_std"])

    def _values(self, params: Params, observations: jax.Array) -> jax.Array:
        return agents.apply_network(params["critic"], observations)[..., 0]

    def _reset(self, key: Key, task_params: PyTree, num: int) -> tuple[PyTree, jax.Array]:
        return jax.vmap(self.env.reset, (0, None))(jax.random.split(key, num), task_params)

    def _begin(self, task_params: PyTree, state: State, key: Key) -> State:
        """Environments begin at the first step, which has a random key as ``start`` has not."""
        fresh = self._reset(key, task_params, self.num_environments)
        old = (state.env_state, state.observations)
        env_state, observations = jax.tree.map(lambda x, y: jnp.where(state.update == 0, x, y), fresh, old)
        return state._replace(env_state=env_state, observations=observations)

    def _step_environments(
        self, key: Key, env_state: PyTree, actions: jax.Array, task_params: PyTree
    ) -> environments.Transition:
        keys = jax.random.split(key, len(actions))
        return jax.vmap(self.env.step, (0, 0, 0, None))(keys, env_state, actions, task_params)

    def _roll_out(self, task_params: PyTree, state: State, key: Key) -> tuple[State, Experience]:
        """Steps of the policy as it stands, and the state with the environments as they then are."""

        def step(state: State, t: jax.Array) -> tuple[State, Experience]:
            k_act, k_env = jax.random.split(jax.random.fold_in(key, t))
            policy = self._policy(state.params, state.observations)
            actions = policy.sample(k_act)
            after = self._step_environments(k_env, state.env_state, actions, task_params)
            returns, lengths = state.unfinished.returns + after.reward, state.unfinished.lengths + 1
            seen = Experience(
                observations=state.observations,
                last_observations=after.last_observation,
                actions=actions,
                log_probs=policy.log_prob(actions),
                rewards=after.reward,
                terminated=after.terminated,
                done=after.done,
                returns=returns,
            )
            unfinished = Unfinished(returns * ~after.done, lengths * ~after.done)
            return state._replace(env_state=after.state, observations=after.observation, unfinished=unfinished), seen

        return jax.lax.scan(step, state, jnp.arange(self.rollout_steps))

    def _improve(self, algorithm: Algorithm, state: State, batch: Batch, key: Key) -> tuple[Params, PyTree]:
        """The epochs of an update: new parameters and the new state of the optimizer."""
        progress = jnp.minimum(state.update / self.num_updates, 1.0)
        drift = self._clipping if _is_optimizer(algorithm) else algorithm
        tx, size = self._optimizer(algorithm, progress), len(batch.log_probs)

        def step(carry: tuple[Params, PyTree], at: tuple[jax.Array, jax.Array]) -> tuple[tuple[Params, PyTree], None]:
            (params, opt_state), (i, places) = carry, at
            minibatch = jax.tree.map(lambda x: x[places], batch)

            def value_fn(params: Params) -> jax.Array:
                return self._loss(params, drift, progress, minibatch)

            value, grads = jax.value_and_grad(value_fn)(params)
            updates, opt_state = tx.update(
                grads,
                opt_state,
                params,
                value=value,
                value_fn=value_fn,
                key=jax.random.fold_in(k_optimizer, i),
                activations=self._unit_activity(params, minibatch),
            )
            return (optax.apply_updates(params, updates), opt_state), None

        def order(key: Key) -> jax.Array:
            return jax.random.permutation(key, size)

        k_orders, k_optimizer = jax.random.split(key)
        orders = jax.vmap(order)(jax.random.split(k_orders, self.num_epochs))
        minibatches = orders.reshape(-1, size // self.num_minibatches)
        return jax.lax.scan(step, (state.params, state.opt_state), (jnp.arange(len(minibatches)), minibatches))[0]

    def _clipping(self, log_ratio: jax.Array, advantage: jax.Array, progress: jax.Array) -> jax.Array:
        """PPO's own drift, ``r A - drift = min(r A, clip(r) A)``; a task knows no family that has it."""
        del progress
        ratio = jnp.exp(log_ratio)
        return jax.nn.relu((ratio - jnp.clip(ratio, 1.0 - self.clip, 1.0 + self.clip)) * advantage)

    def _loss(self, params: Params, drift: Drift, progress: jax.Array, batch: Batch) -> jax.Array:
        policy, values = self._policy(params, batch.observations), self._values(params, batch.observations)
        log_ratio = policy.log_prob(batch.actions) - batch.log_probs
        advantage = (batch.advantages - jnp.mean(batch.advantages)) / (jnp.std(batch.advantages) + 1e-8)
        actor_loss = -jnp.mean(jnp.exp(log_ratio) * advantage - drift(log_ratio, advantage, progress=progress))
        clipped = batch.values + jnp.clip(values - batch.values, -self.clip, self.clip)
        critic_loss = 0.5 * jnp.mean(jnp.maximum((values - batch.targets) ** 2, (clipped - batch.targets) ** 2))
        return actor_loss + self.value_weight * critic_loss - self.entropy_weight * jnp.mean(policy.entropy())

    def _unit_activity(self, params: Params, batch: Batch) -> Params:
        networks = {name: params[name] for name in ("actor", "critic")}
        activity = {name: agents.unit_activity(network, batch.observations) for name, network in networks.items()}
        return activity if self.env.is_discrete else activity | {"log_std": jnp.ones(self.env.num_actions)}

    def _optimizer(self, algorithm: Algorithm, progress: jax.Array | float) -> optax.GradientTransformationExtraArgs:
        if _is_optimizer(algorithm):
            return optax.with_extra_args_support(optax.chain(_clip_networks(self.max_norm), algorithm))
        rate = self.learning_rate * (1.0 - progress)  # constant within an update
        clip = optax.clip_by_global_norm(self.max_norm)
        return optax.with_extra_args_support(optax.chain(clip, optax.scale_by_adam(eps=ADAM_EPS), optax.scale(-rate)))


def _is_optimizer(algorithm: Algorithm) -> bool:
    return isinstance(algorithm, optax.GradientTransformation)


def _clip_networks(max_norm: float) -> optax.GradientTransformation:
    """Clips the gradients of actor and critic by the norm of each."""
    clip = optax.clip_by_global_norm(max_norm)

    def clip_each(grads: Params, params: Params | None = None) -> Params:
        del params
        return {name: clip.update(of_network, optax.EmptyState())[0] for name, of_network in dict(grads).items()}

    return optax.stateless(clip_each)
