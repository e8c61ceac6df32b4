"""Nothing that was learnt is rounded away in silence: anchors, rollouts, exports."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import releases
import tiny
import toyrun as run

from perl import trees
from perl.cli import convert
from perl.hub import adapters as peft_format
from perl.hub import pretrained
from perl.jobs import _export as exports
from perl.jobs._artefacts import Artefacts
from perl.jobs._run import Run
from perl.models import lm
from perl.models.transformer import Transformer
from perl.peft import adapters, composition
from perl.rl.rollout import kept_apart, rollout
from perl.rl.step import Step
from perl.train import checkpoint

INPUTS = {'tokenizer': 'tokenizer', 'base': 'pretrain', 'anchor': 'sft', 'reward': 'reward'}


def narrow(base, **dtypes):
  """A base of the same digest in other dtypes."""
  model = Transformer(dataclasses.replace(base.model.config, **dtypes))
  params = trees.cast(base.params, jnp.dtype(dtypes.get('param_dtype', 'float32')))
  return dataclasses.replace(base, model=model, params=params)


# --- The anchor


@pytest.mark.parametrize('dtypes, apart', [
  (dict(dtype='float32', param_dtype='float32'), False),
  (dict(dtype='bfloat16', param_dtype='bfloat16'), True),
  (dict(dtype='bfloat16', param_dtype='float32'), True),  # it is rounded at each product
])
def test_an_anchor_that_would_lose_what_sft_learnt_keeps_its_adapter_apart(
  toyrun, tmp_path, caplog, dtypes, apart
):
  tree, meta = checkpoint.load_tree(toyrun / 'sft' / 'adapter')
  small = trees.nest({n: x / 100 if n.endswith('/b') else x for n, x in trees.flat(tree).items()})
  checkpoint.save_tree(tmp_path / 'adapter', small, meta)
  (tmp_path / 'summary.json').write_text('{}')
  inputs = {f'inputs__{name}': str(toyrun / stage) for name, stage in INPUTS.items()}
  inputs['inputs__anchor'] = str(tmp_path)
  with run.small_world(), caplog.at_level(logging.INFO):
    artefacts = Artefacts(Run(run.config(**inputs), str(toyrun / 'rl'), 'rl'))
    base = narrow(artefacts.base(), **dtypes)
    anchor, sft = artefacts.anchor_over(base)
    policy = artefacts.new_adapter(anchor, artefacts.run.key)
  assert bool(anchor.below) == apart
  assert ('would be rounded away' in caplog.text) == apart
  assert anchor.digest == artefacts.anchor().digest  # it is known by what it is made of
  if apart:
    tiny.equal(anchor.params, base.params)
  tokens, mask = tiny.tokens(vocabulary=300), tiny.right_mask([10, 4, 7, 1])
  ours = lm.logits(anchor.model, anchor.params, policy, tokens, mask)
  expected = lm.logits(base.model, base.params, sft, tokens, mask)
  np.testing.assert_allclose(ours, expected, atol=1e-4 if not apart else 0.0)


# --- Rollouts


def policy_of(dtype, size):
  """(sample, base, adapter): a rollout that shall merge, of a LoRA of that size."""
  model, base = tiny.make('llama', dtype=dtype, param_dtype=dtype)
  fresh = tiny.lora(base, head=False)
  adapter = tiny.trained(fresh, size) if size else fresh
  return functools.partial(rollout, model, merged=True), base, adapter


@pytest.mark.parametrize('dtype, size, merges', [
  ('float32', 1e-4, True), ('bfloat16', 1e-3, False), ('bfloat16', 2.0, True),
  ('bfloat16', 0.0, False)])
def test_a_rollout_merges_where_that_stands_for_the_policy(dtype, size, merges):
  assert kept_apart(*policy_of(dtype, size)) == ({} if merges else {'merged': False})


def test_a_rollout_that_shall_not_merge_is_not_measured():
  sample, base, adapter = policy_of('bfloat16', 1e-3)
  assert kept_apart(functools.partial(sample, merged=None), base, adapter) == {}
  assert kept_apart(sample.func, base, adapter) == {}


def test_the_step_of_rl_asks_before_each_rollout():
  sample, base, adapter = policy_of('bfloat16', 1e-3)

  class Sampled(Exception):
    """Ends the step where it samples."""

  def stop(*_, merged, **__):
    raise Sampled(merged)

  stopping = functools.partial(stop, *sample.args, merged=True)
  step = Step(base, [], sample=stopping, rewards=None, experience=None, update=None)
  state = type('State', (), {'adapters': {'policy': adapter}, 'key': jax.random.key(0), 'step': 0})
  with pytest.raises(Sampled, match='False'):
    step.gather(state, {name: jnp.ones((1, 2)) for name in ('tokens', 'mask', 'weight')})


# --- Exports


@pytest.fixture(scope='module')
def narrow_checkpoint(tmp_path_factory):
  """A bfloat16 checkpoint, and a LoRA over it in PEFT's format, of a small update."""
  folder = tmp_path_factory.mktemp('narrow')
  releases.make('llama').to(releases.torch.bfloat16).save_pretrained(folder / 'base')
  model, base, _ = pretrained.load(folder / 'base')
  adapter = tiny.trained(tiny.lora(base, head=False), 1e-4)
  peft_format.save(folder / 'adapter', adapter, base, heads=model.config.heads)
  return folder


def merge(folder, out, *more):
  return convert.main(['merge', f'--folder={folder / "base"}', f'--adapter={folder / "adapter"}',
                       f'--out={out}', *more])


def test_a_merge_that_loses_the_update_says_how_much(narrow_checkpoint, tmp_path, caplog, capsys):
  assert merge(narrow_checkpoint, tmp_path / 'narrow') == 0
  figures = dict(line.split(' ', 1) for line in capsys.readouterr().out.splitlines())
  assert float(figures['merge_update_error']) > 0.5
  assert 'of what was learnt is rounded away' in caplog.text and '--dtype=float32' in caplog.text


def test_a_merge_into_float32_loses_nothing(narrow_checkpoint, tmp_path, caplog):
  assert merge(narrow_checkpoint, tmp_path / 'wide', '--dtype=float32') == 0
  assert 'rounded away' not in caplog.text
  _, base, _ = pretrained.load(narrow_checkpoint / 'base', dtype='float32')
  model, merged, _ = pretrained.load(tmp_path / 'wide')
  learnt = peft_format.load(narrow_checkpoint / 'adapter', base, heads=model.config.heads)
  tiny.equal(merged, adapters.merge(base, learnt))


def test_a_merge_of_a_wide_base_into_a_narrow_file_is_measured_too():
  model, base = tiny.make('llama')
  report = exports.merge_difference(model, base, tiny.trained(tiny.lora(base), 1e-4), 'bfloat16')
  assert report['merge_update_error'] > 0.5


def test_what_lies_over_an_anchor_that_is_apart_goes_out_alone_and_composed():
  _, base = tiny.make('llama', dtype='bfloat16', param_dtype='bfloat16')
  below, above = (tiny.trained(tiny.lora(base, seed, head=False), 1e-3, seed) for seed in (1, 2))
  together = composition.over(base, below, above)
  tiny.equal(composition.upper(together), above)
  both = exports.compose(below, composition.upper(together))
  whole = trees.cast(base, jnp.float32)
  tiny.close(adapters.merge(whole, both), adapters.merge(whole, together), atol=1e-6)
