"""Checkpoints in and out: what is in a folder, import, export, merge.

    perl-rlhf convert inspect --folder=models/llama
    perl-rlhf convert import --folder=models/llama --out=runs/llama
    perl-rlhf convert import --folder=models/llama --out=runs/nf4 --quantize=nf4
    perl-rlhf convert import --gguf=llama.gguf --out=models/llama --form=huggingface
    perl-rlhf convert export --stage=runs/coffee/rl --out=exported/policy
    perl-rlhf convert check --folder=models/llama --adapter=exported/policy
    perl-rlhf convert merge --folder=models/llama --adapter=exported/policy --out=merged

inspect  shapes, counts, dtype and digest of a checkpoint; ranks and scales of an adapter
import   a published checkpoint, or a GGUF file, as our Orbax tree with its tokenizer, quantized if
         asked (--quantize=native: in the GGUF file's own blocks), or as a Hugging Face folder
         (--form=huggingface): --config.model.checkpoint=<out>
export   a finished stage: PEFT's adapter over the base (--form=adapter; reward models with their
         head, policies together with SFT's), the adapter over the anchor (--form=alone), or a whole
         Hugging Face model (--form=merged)
check    logits (scores of a reward model) of ours beside those of transformers and PEFT (extra hf)
merge    a checkpoint and an adapter in PEFT's format into a Hugging Face folder
"""

import argparse
import importlib.metadata
import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from perl import paths, trees
from perl.cli import _contents as contents
from perl.config import command_line
from perl.config.fields import ConfigError
from perl.hub import adapters as peft_format
from perl.hub import peer, pretrained, published, scored_token, tensors, writing
from perl.jobs import ADAPTED, PRODUCER, TRAINED
from perl.jobs import _base as bases
from perl.jobs import _export as exports
from perl.jobs._run import Run
from perl.models import lm
from perl.peft import adapters
from perl.quantized import NATIVE, bits_per_parameter, chosen, scheme_of
from perl.train import metrics, provenance


def import_(
  folder: str, out: str, dtype: str = '', quantize: str = '', block: int = 64, double: bool = False
) -> dict:
  """Writes out/base (Orbax), the tokenizer, and a summary: a finished pretrain stage, or nothing.

  Args:
    folder: a published checkpoint, a GGUF file, or Gemma's Orbax tree.
    out: new or empty.
    dtype: of the stored base; '' is the checkpoint's.
    quantize: kind of its layers' matrices, as config.model.quantize; '' leaves them dense.
    block, double: as config.model.quantize_block and double_quantize.
  """
  scheme = chosen(quantize, block, double)
  summary = {'imported_from': str(paths.absolute(folder)), 'commit': provenance.commit()}

  def write(new: epath.Path) -> None:
    model, params, tokenizer = pretrained.load(folder, dtype=dtype or None, quantize=scheme)
    base = bases.Base(model, params, bases.digest_of(folder, scheme))
    summary.update(parameters_total=trees.count(params), digest=base.digest,
                   bytes=trees.size_bytes(params))
    if scheme:
      summary.update(quantized=scheme_of(params).tag,
                     bits_per_parameter=bits_per_parameter(params))
    if scheme == NATIVE:
      summary.update(largest_difference=published.apart(paths.of(folder), params))
    if tokenizer is not None:
      tokenizer.save(new)
    bases.write_base(new, base, '' if tokenizer is None else tokenizer.digest)
    metrics.summary(str(new), summary)

  writing.into_folder(out, write)
  return summary


def as_folder(folder: str, out: str, dtype: str = '', quantize: str = '') -> dict:
  """Writes a Hugging Face folder of a published checkpoint, a GGUF file above all.

  Raises:
    ConfigError: it shall be quantized, which such folders are not here.
  """
  if quantize:
    raise ConfigError(f"expected quantize='' for form=huggingface, found {quantize!r}; unset it")
  pretrained.publish(folder, out, dtype=dtype or None)
  return {'imported_from': str(paths.absolute(folder)), 'digest': pretrained.digest(out),
          'bytes': sum(one.bytes for one in tensors.find(out).values())}


def export(stage: str, out: str, form: str, uniform: bool, dtype: str = '') -> dict:
  """`perl.jobs._export.export` of a stage's folder, which holds its config.json.

  Raises:
    ConfigError: no finished stage there.
  """
  folder = paths.of(stage)
  if not (folder / 'summary.json').exists() or not (folder / 'config.json').exists():
    raise ConfigError(f'expected a finished stage in {stage}, found none; give <workdir>/<stage>')
  config = command_line.saved(folder / 'config.json')
  name = paths.absolute(folder).name
  if name not in ADAPTED or not (folder / 'adapter').is_dir():
    name = PRODUCER['base']
    if not (folder / 'base').is_dir():
      raise ConfigError(
        f'expected a folder called {", ".join(TRAINED)} with that stage, found {stage}')
  return exports.export(
    Run(config, stage, name), out, form=form, uniform=uniform, dtype=dtype)


def merge(folder: str, adapter: str, out: str, dtype: str = '') -> dict:
  """Writes the Hugging Face folder of a checkpoint with an adapter folded in, in float32.

  Returns:
    merge_logit_difference, on 2 x 32 random tokens, how far the merged weights are from exact
    ones (relative, the largest and the RMS), how much of the change was lost, and parameters.
  """
  stored = pretrained.stored_dtype(folder)
  if dtype:  # what is written in float32 is not rounded before
    stored = jnp.promote_types(stored, dtype).name
  model, base, tokenizer = pretrained.load(folder, dtype='float32', param_dtype=stored)
  learnt = peft_format.load(adapter, base, heads=model.config.heads)
  own = pretrained.load_tokenizer(adapter)  # which knows what the adapter learnt to stop at
  if own is not None and own.vocab_size <= model.config.vocab_size:
    tokenizer = own
  report = exports.merge_difference(model, base, learnt, dtype)
  merged = adapters.merge(base, learnt)
  pretrained.save(
    out, model, merged, tokenizer=tokenizer, head=learnt.get('head'),
    source=exports.published(folder), dtype=jnp.dtype(dtype) if dtype else None,
  )
  return {**report, 'parameters': trees.count(merged), 'head': 'head' in learnt}


def check(folder: str, adapter: str = '') -> dict:
  """How far our float32 logits are from those of transformers (and PEFT), on 4 x 32 random tokens.

  Rows end with what ends a response, as those of reward models do, and are padded as the folder
  says.

  Args:
    folder: checkpoint.
    adapter: over it, in PEFT's format; one with a score compares scores.

  Returns:
    what was compared, the largest |difference|, and that over the largest |logit|.
  """
  model, base, tokenizer = pretrained.load(folder, dtype='float32')
  learnt = peft_format.load(adapter, base, heads=model.config.heads) if adapter else {}
  tokenizer = (pretrained.load_tokenizer(adapter) if adapter else None) or tokenizer
  stops = () if tokenizer is None else tokenizer.stop_ids
  head = pretrained.load_head(folder)
  if 'head' in learnt:
    learnt['head'] = scored_token.head(learnt['head'], adapter, folder, stops)
  elif head is not None:
    learnt['head'] = head
  tokens, mask = _rows(model.config.vocab_size, stops)
  scored = 'head' in learnt
  compute = jax.jit(lm.score if scored else lm.logits, static_argnums=0)
  ours = np.asarray(compute(model, base, learnt, tokens, mask))
  theirs = peer.outputs(folder, adapter, tokens, mask, scored=scored)
  if not scored:
    ours, theirs = ours[mask], theirs[mask]
  difference = float(np.abs(ours - theirs).max())
  return {'compared': 'scores' if scored else 'logits', 'largest_difference': difference,
          'relative': difference / float(np.abs(theirs).max())}


def _rows(vocab_size: int, stops: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
  """(tokens i32[4, 32], mask) of four lengths, each with one of the stops at its end, if any."""
  rng = np.random.default_rng(0)
  lengths = np.array([32, 24, 9, 2])
  mask = np.arange(32) < lengths[:, None]
  tokens = np.where(mask, rng.integers(3, vocab_size, mask.shape), 0).astype(np.int32)
  if stops:
    tokens[np.arange(4), lengths - 1] = np.resize(stops, 4)
  return tokens, mask


ACTIONS = {
  'inspect': lambda o: contents.of(o.folder),
  'import': lambda o: as_folder(o.folder, o.out, o.dtype, o.quantize) if (
    o.form == 'huggingface') else import_(
      o.folder, o.out, o.dtype, o.quantize, o.block, o.double),
  'export': lambda o: export(o.stage, o.out, o.form, o.uniform, o.dtype),
  'check': lambda o: check(o.folder, o.adapter),
  'merge': lambda o: merge(o.folder, o.adapter, o.out, o.dtype),
}
"""Action -> its report, of the command line's options."""


@command_line.guarded
def main(argv: Sequence[str] | None = None) -> None:
  """The program; returns the exit code: 2 for what cannot be read or written, else 0."""
  options = command_line.explaining(_parser()).parse_args(argv)
  if 'out' in options:
    writing.check_new(options.out)
  report = ACTIONS[options.action](options)
  if options.action == 'inspect':
    print(json.dumps(report, indent=2) if options.json else contents.lines(report))
    return
  print('\n'.join(f'{name} {value}' for name, value in report.items()))
  if options.action != 'check':
    print(f'written to {options.out}')
  elif options.json:
    _write(options, report)


def _write(options: argparse.Namespace, report: dict) -> None:
  record = provenance.record()
  peers = {name: importlib.metadata.version(name) for name in ('torch', 'transformers', 'peft')}
  metrics.write_json(options.json, {
    'command': f'perl-rlhf convert {options.action}', **report,
    'settings': vars(options), **(record | {'versions': record['versions'] | peers})})


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='perl-rlhf convert', description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter)
  actions = parser.add_subparsers(dest='action', required=True)
  add = lambda name, text: actions.add_parser(name, help=text, description=text)
  one = add('inspect', 'Shapes, counts, dtype and digest of a checkpoint or an adapter.')
  one.add_argument('--folder', required=True, help='checkpoint, or adapter in PEFT\'s format')
  one.add_argument('--json', action='store_true', help='print JSON')
  one = add('import', 'A published checkpoint as our Orbax tree, with its tokenizer.')
  source = one.add_mutually_exclusive_group(required=True)
  source.add_argument('--folder', help='checkpoint')
  source.add_argument('--gguf', dest='folder', help='GGUF file')
  one.add_argument('--form', default='orbax', choices=('orbax', 'huggingface'),
                   help='what is written: a tree of ours, or a folder that transformers reads too')
  one.add_argument('--dtype', default='', help='of the stored base')
  one.add_argument('--quantize', default='', choices=('', 'nf4', 'fp4', 'int8', 'int4', 'native'),
                   help='the layers\' matrices, as they are read; native: as a GGUF file has them')
  one.add_argument('--block', type=int, default=64, help='inputs that share a scale')
  one.add_argument('--double', action='store_true', help='quantize the scales too')
  one.add_argument('--out', required=True, help='new folder')
  one = add('export', 'A finished stage for transformers, PEFT and vLLM.')
  one.add_argument('--stage', required=True,
                   help=f'its folder: <workdir>/<stage>, of {", ".join(TRAINED)}')
  one.add_argument('--form', default='adapter', choices=('adapter', 'alone', 'merged'),
                   help='adapter over the base, adapter over the anchor, or a whole model')
  one.add_argument('--uniform', action='store_true',
                   help='one rank and one scale for all modules (vLLM reads no patterns)')
  one.add_argument('--dtype', default='', help='of a merged model, which is merged in it')
  one.add_argument('--out', required=True, help='new folder')
  one = add('check', 'Our logits beside those of transformers and PEFT.')
  one.add_argument('--folder', required=True, help='checkpoint')
  one.add_argument('--adapter', default='', help='adapter in PEFT\'s format')
  one.add_argument('--json', default='', help='write the result to this file')
  one = add('merge', 'A checkpoint with an adapter folded in.')
  one.add_argument('--folder', required=True, help='checkpoint')
  one.add_argument('--adapter', required=True, help='adapter in PEFT\'s format')
  one.add_argument('--dtype', default='', help='of the merged weights')
  one.add_argument('--out', required=True, help='new folder')
  return parser
