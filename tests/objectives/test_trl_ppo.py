"""TRL's PPO on our tensors: its own lines, run as they stand.

TRL has had no PPO trainer since 1.0, and in those before the losses stand in the middle of `train`.
So this reads the file of an older one, and runs the lines between two marks of it:

  pip download --no-deps trl==0.19.1 -d old && unzip old/*.whl -d old
  TRL_WITH_PPO=old/trl pytest tests/objectives/test_trl_ppo.py
"""

import ast
import os
import pathlib
import textwrap
import types

import jax.numpy as jnp
import numpy as np
import pytest

from perl.options import bound
from perl.rl import algorithms
from perl.types import Experience

torch = pytest.importorskip('torch')
TRL = pathlib.Path(os.environ.get('TRL_WITH_PPO', 'there is none'))
if not (TRL / 'trainer' / 'ppo_trainer.py').is_file():
  pytest.skip('TRL_WITH_PPO names no folder of a trl with PPO', allow_module_level=True)

B, T = 6, 5
MASK = np.arange(T) < np.asarray([5, 3, 1, 4, 2, 5])[:, None]
ASKED = dict(gamma=0.97, lam=0.9, clip=0.2, clip_high=None, level='token', aggregation='token',
             max_new_tokens=T, value_clip=0.2, whiten_advantages=True, samples=1)


def draw(seed):
  x = np.random.default_rng(seed).normal(size=(B, T)).astype(np.float32)
  return np.where(MASK, x, 0.0).astype(np.float32)


NEW, REWARDS, OLD_VALUES, VALUES = draw(0) - 2, draw(1), draw(2), draw(3)
OLD = NEW + 0.5 * draw(4)


def lines(first, last):
  """The lines of `train` from the one that begins with `first` to the one that does with `last`."""
  text = (TRL / 'trainer' / 'ppo_trainer.py').read_text().splitlines()
  start = next(i for i, line in enumerate(text) if line.strip().startswith(first))
  end = next(i for i, line in enumerate(text[start:], start) if line.strip().startswith(last))
  return textwrap.dedent('\n'.join(text[start:end + 1]))


def theirs():
  """What the names of TRL's loop hold after its own lines."""
  tree = ast.parse((TRL / 'core.py').read_text())
  functions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in (
    'masked_mean', 'masked_var', 'masked_whiten')]
  for function in functions:
    function.returns = None
    for argument in function.args.args:
      argument.annotation = None
  tensor = lambda x: torch.tensor(np.array(x))
  padding = ~tensor(MASK)
  found = {
    'torch': torch, 'responses': tensor(NEW), 'rewards': tensor(REWARDS),
    'values': tensor(OLD_VALUES), 'padding_mask': padding, 'padding_mask_p1': padding,
    'args': types.SimpleNamespace(
      gamma=ASKED['gamma'], lam=ASKED['lam'], cliprange=0.2, cliprange_value=0.2, vf_coef=0.1),
    'micro_batch_inds': slice(None), 'new_logprobs': tensor(NEW), 'mb_logprobs': tensor(OLD),
    'vpred': tensor(VALUES), 'mb_values': tensor(OLD_VALUES)}
  exec(compile(ast.Module(functions, []), 'core', 'exec'), found)
  exec(lines('lastgaelam = 0', 'advantages = torch.masked_fill'), found)
  found |= {'mb_advantage': found['advantages'], 'mb_return': found['returns']}
  exec(lines('vpredclipped = torch.clamp(', 'pg_loss = masked_mean'), found)
  return found


def test_ppo_is_trls():
  found = theirs()
  e = Experience(
    tokens=jnp.zeros((B, T), int), mask=MASK, response_mask=jnp.asarray(MASK),
    behaviour_logprobs=OLD, reference_logprobs=OLD, rewards=REWARDS, returns=REWARDS,
    scores=jnp.zeros(B), weight=jnp.ones(B), values=jnp.asarray(OLD_VALUES))
  ppo = algorithms.find('ppo')
  e = bound(ppo.estimate, ASKED)(e)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  close(e.returns, np.where(MASK, found['returns'], 0.0))
  # TRL's variance has n - 1 below the line, and NaN for one token; ours has n.
  n = MASK.sum()
  close(e.advantages * np.sqrt((n - 1) / n), found['advantages'])
  e = e.replace(advantages=jnp.asarray(found['advantages'].numpy()))
  close(bound(ppo.policy_loss, ASKED)(jnp.asarray(NEW), e)[0].value(), found['pg_loss'])
  close(bound(ppo.value_loss, ASKED)(jnp.asarray(VALUES), e).value(), found['vf_loss'])
