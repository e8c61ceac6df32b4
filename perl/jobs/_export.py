"""What a finished stage leaves, for others: PEFT's adapter over the base, or a whole merged model.

Adapters of reward, preference and rl lie over the anchor, which is the base with the SFT adapter
merged in. Over the base itself they are both LoRA at once, of the summed rank.
"""

import logging

import jax.numpy as jnp
import numpy as np

from perl import paths, trees
from perl.evaluate import merging
from perl.hub import adapters as peft_format
from perl.hub import gguf, pretrained
from perl.jobs._artefacts import Artefacts, Base
from perl.jobs._run import Run
from perl.models.transformer import Transformer
from perl.peft import adapters, composition, rounding
from perl.peft.methods import lora
from perl.types import Tree

FORMS = ('adapter', 'alone', 'merged')


def export(
  run: Run, folder: str, *, form: str = 'adapter', uniform: bool = False, dtype: str = ''
) -> dict:
  """Writes the result of a finished stage.

  Args:
    run: the stage's (pretrain, sft, reward, preference or rl).
    folder: new or empty.
    form: 'adapter', over the checkpoint or pretrained base; 'alone', over the anchor (export the
      sft stage merged to have it); 'merged', a model of its own.
    uniform: see hub.adapters.save; for vLLM.
    dtype: of a merged model, which is merged in it; '' is the base's.

  Returns:
    what was written: parameters, and for 'merged' what `merge_difference` says.

  Raises:
    ValueError: a form that the stage or its method does not have, or an ensemble.
  """
  if form not in FORMS:
    raise ValueError(f'expected a form among {FORMS}, found {form!r}; choose one')
  if run.stage == 'pretrain':
    return _export_base(run, folder)
  base, adapter = _over(run, 'base' if form == 'adapter' else 'anchor')
  if form == 'merged':
    return _merged(run, folder, base, adapter, dtype)
  adapter = composition.upper(adapter)
  own = form == 'adapter'  # the anchor, as a folder of its own, goes by another digest
  peft_format.save(
    folder, adapter, base.params, heads=base.model.config.heads, uniform=uniform,
    base_name=_source(run) if own else '', base_digest=base.digest if own else '',
    tokenizer=Artefacts(run).tokenizer)
  return {'form': form, 'parameters': adapters.count(adapter), 'head': 'head' in adapter}


def _export_base(run: Run, folder: str) -> dict:
  """A pretrain stage is a whole model already."""
  config = run.config.copy_and_resolve_references()
  config.unlock()
  config.inputs.base = run.workdir
  artefacts = Artefacts(Run(config, run.workdir, run.stage))
  base = artefacts.base()
  pretrained.save(folder, base.model, base.params, tokenizer=artefacts.tokenizer)
  return {'form': 'merged', 'parameters': trees.count(base.params), 'head': False}


def _over(run: Run, below: str) -> tuple[Base, Tree]:
  """(what the adapter lies over, the adapter), composed with SFT's where that is asked for."""
  artefacts = Artefacts(run)
  base = artefacts.base()
  if run.stage == 'sft':
    return base, artefacts.adapter(run.workdir, base)[0]
  anchor, sft = artefacts.anchor_over(base)
  adapter, _ = artefacts.adapter(run.workdir, anchor)
  if members := adapters.members(adapter):
    raise ValueError(
      f'expected one adapter to export, found an ensemble of {members} in {run.workdir}, which '
      'no other format holds; train a reward model with reward.members=1')
  if below == 'anchor' or not sft:
    return anchor, adapter
  return base, compose(sft, composition.upper(adapter))


def compose(below: Tree, above: Tree) -> Tree:
  """One tree of LoRA that does what both do; a head is that of the upper one.

  Raises:
    ValueError: a method that has no such sum.
  """
  nodes, upper = adapters.nodes(below), adapters.nodes(above)
  other = next(
    (n for n in (*nodes.values(), *upper.values()) if not isinstance(n, lora.LoRA)), None)
  if other is not None:
    raise ValueError(
      f'expected LoRA adapters to put one over the other, found {type(other).__name__}; '
      "export with --form=merged")
  for path, node in upper.items():
    nodes[path] = lora.concatenate(nodes[path], node) if path in nodes else node
  return trees.nest(nodes) | ({'head': above['head']} if 'head' in above else {})


def _merged(run: Run, folder: str, base: Base, adapter: Tree, dtype: str) -> dict:
  params = trees.cast(base.params, jnp.dtype(dtype)) if dtype else base.params
  report = merge_difference(base.model, params, adapter)
  merged = adapters.merge(params, adapter)
  pretrained.save(
    folder, base.model, merged, tokenizer=Artefacts(run).tokenizer, head=adapter.get('head'),
    source=published(_source(run)), dtype=jnp.dtype(dtype) if dtype else None)
  return report | {
    'form': 'merged', 'parameters': trees.count(merged), 'head': 'head' in adapter}


def merge_difference(
  model: Transformer, base: Tree, adapter: Tree, dtype: str = ''
) -> dict[str, float]:
  """merge_logit_difference: the largest |merged - unmerged| logit of 2 x 32 random tokens; and
  `merging.merge_error`, and merge_update_error, of perl/peft/rounding.py, of which is warned.

  Args:
    model, base, adapter: the unmerged model.
    dtype: that the merged weights are written in; '' is the base's.
  """
  rng = np.random.default_rng(0)
  length = min(32, model.config.max_positions)
  tokens = rng.integers(0, model.config.vocab_size, (2, length)).astype(np.int32)
  difference = merging.logit_difference(
    model, base, adapter, tokens, np.ones(tokens.shape, bool))
  lost = rounding.error(base, adapter, dtype or None)
  if lost > rounding.LIMIT:
    logging.warning(
      'merged into %s, %.0f %% of what was learnt is rounded away (its change of the weights, '
      'relatively); write float32 (--dtype=float32), or keep the adapter apart (--form=adapter)',
      dtype or base['final_norm']['scale'].dtype, 100 * lost)
  return {'merge_logit_difference': difference, **merging.merge_error(base, adapter),
          'merge_update_error': lost}


def _source(run: Run) -> str:
  return run.config.model.checkpoint if run.from_checkpoint('base') else ''


def published(folder: str) -> str:
  """The folder if it is a Hugging Face one, or a GGUF file, whose config can be kept; else ''."""
  has = folder and (gguf.is_one(folder) or (paths.of(folder) / 'config.json').exists())
  return folder if has else ''
