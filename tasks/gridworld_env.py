"""Random gridworlds: walls, objects that are collected by walking over them, a limit of time.

A level is drawn from the space "all" of GROOVE, where LPG is meta-trained. Shapes are static: a small grid
lies in the corner of a large one, and what is outside of it are walls.

Source: Jackson et al., arXiv:2310.02782; EmptyJackson/groove, environments/gridworld.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from metaopt.core import Key

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1), (0, 0))  # rows and columns by action; the last stays
REWARDS = (-1.0, 1.0)  # uniform; of the first object from 0, so that there is always something to gain
P_TERMINATE = (1e-2, 1.0)  # log-uniform
P_RESPAWN = (1e-3, 1e-1)  # log-uniform


class Level(NamedTuple):
    """One gridworld."""

    walls: jax.Array  # (side, side) bool, also of what is outside of the grid
    start: jax.Array  # (2,) int32 row and column
    cells: jax.Array  # (num_objects, 2) int32
    exists: jax.Array  # (num_objects,) bool, whether the level has this object at all
    rewards: jax.Array  # (num_objects,) for collecting it
    p_terminate: jax.Array  # (num_objects,) probability that collecting it ends the episode
    p_respawn: jax.Array  # (num_objects,) probability that it is there again, in each step
    limit: jax.Array  # () int32, steps after which an episode is cut off


class GridState(NamedTuple):
    """Where an episode stands."""

    position: jax.Array  # (2,) int32
    present: jax.Array  # (num_objects,) bool, objects that can be collected
    time: jax.Array  # () int32, steps so far


class Outcome(NamedTuple):
    reward: jax.Array  # ()
    terminated: jax.Array  # () bool, by an object
    done: jax.Array  # () bool, by an object or by the limit


def sample_level(
    key: Key, side: int, smallest: int, num_objects: int, num_walls: int, limits: tuple[int, int]
) -> Level:
    """Draws a level; the start and the objects are in cells of their own, without walls.

    Args:
      key: random key.
      side: rows and columns of the largest grid; the grid's own are uniform in [smallest, side].
      smallest: rows and columns of the smallest grid.
      num_objects: largest number of objects; the level's own is uniform in [1, num_objects].
      num_walls: cells with a wall among side * side; a small grid has those in its corner.
      limits: bounds of the limit of time, which is log-uniform.
    """
    k_size, k_walls, k_cells, k_number, k_rewards, k_terminate, k_respawn, k_limit = jax.random.split(key, 8)
    size = jax.random.randint(k_size, (), smallest, side + 1)
    inside = jnp.arange(side) < size
    walls = jax.random.permutation(k_walls, side * side).reshape(side, side) < num_walls
    walls |= ~(inside[:, None] & inside)
    # The free cells in random order come before all others.
    order = jnp.argsort(jax.random.uniform(k_cells, (side * side,)) + walls.ravel())
    start, *cells = (jnp.stack(divmod(order[i], side)).astype(jnp.int32) for i in range(1 + num_objects))
    shape = (num_objects,)
    rewards = jax.random.uniform(k_rewards, shape, minval=jnp.full(shape, REWARDS[0]).at[0].set(0.0), maxval=REWARDS[1])
    return Level(
        walls=walls,
        start=start,
        cells=jnp.stack(cells),
        exists=jnp.arange(num_objects) < jax.random.randint(k_number, (), 1, num_objects + 1),
        rewards=rewards,
        p_terminate=_log_uniform(k_terminate, shape, *P_TERMINATE),
        p_respawn=_log_uniform(k_respawn, shape, *P_RESPAWN),
        limit=jnp.round(_log_uniform(k_limit, (), *limits)).astype(jnp.int32),
    )


def reset(level: Level) -> GridState:
    """The beginning of every episode: at the start, with all objects in place."""
    return GridState(level.start, level.exists, jnp.zeros((), jnp.int32))


def step(level: Level, state: GridState, action: jax.Array, key: Key) -> tuple[GridState, Outcome]:
    """One step; what follows the end of an episode is for the caller, see ``reset``.

    The agent moves unless there is a wall; an object in its cell is collected: its reward is given,
    the episode ends with probability p_terminate, and the object is away. An object that was away before
    the step is there again with probability p_respawn, and can be collected from the next step on.

    Args:
      level: the level.
      state: where the episode stands.
      action: () int, an index of MOVES.
      key: random key.
    """
    side = level.walls.shape[0]
    target = jnp.clip(state.position + jnp.array(MOVES, jnp.int32)[action], 0, side - 1)
    position = jnp.where(level.walls[target[0], target[1]], state.position, target)
    collected = state.present & jnp.all(level.cells == position, axis=-1)
    u_terminate, u_respawn = jax.random.uniform(key, (2, *collected.shape))
    present = state.present & ~collected | ~state.present & level.exists & (u_respawn < level.p_respawn)
    terminated = jnp.any(collected & (u_terminate < level.p_terminate))
    time = state.time + 1
    reward = jnp.sum(jnp.where(collected, level.rewards, 0.0))
    return GridState(position, present, time), Outcome(reward, terminated, terminated | (time >= level.limit))


def num_observations(side: int, num_objects: int) -> int:
    return side * side * 2**num_objects


def observe(level: Level, state: GridState) -> jax.Array:
    """() int32 index of the cell and of which objects are present together: what tabular agents look up."""
    side = level.walls.shape[0]
    bits = 2 ** jnp.arange(len(state.present), dtype=jnp.int32)
    present = jnp.sum(jnp.where(state.present, bits, 0))
    return state.position[0] * side + state.position[1] + side * side * present


def _log_uniform(key: Key, shape: tuple[int, ...], low: float, high: float) -> jax.Array:
    return jnp.exp(jax.random.uniform(key, shape, minval=math.log(low), maxval=math.log(high)))
