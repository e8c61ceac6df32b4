"""What is in a checkpoint or an adapter: shapes, counts, dtype, digest."""

import dataclasses

from perl import paths, trees
from perl.hub import adapters as peft_format
from perl.hub import pretrained
from perl.models import lm
from perl.models.transformer import Transformer
from perl.quantization import quantize_tree
from perl.quantized import bits_per_parameter


def of(folder: str) -> dict:
  """What a folder holds.

  Returns:
    for a checkpoint: config, tensors {path: {shape, dtype}} of our base tree, parameters, bytes,
    digest, head, vocabulary of the tokenizer; for an adapter: ranks and scales by module.
  """
  if (paths.of(folder) / 'adapter_config.json').exists():
    return _of_adapter(folder)
  stored = pretrained.stored_dtype(folder)
  config = pretrained.read_config(folder, param_dtype=stored, dtype=stored)
  scheme = pretrained.scheme(folder)
  base = quantize_tree(lm.abstract(Transformer(config)), scheme, like=True)
  tokenizer = pretrained.load_tokenizer(folder)
  return {
    'kind': 'checkpoint',
    'config': dataclasses.asdict(config),
    'tensors': {n: {'shape': list(x.shape),
                    'dtype': scheme.tag if trees.is_leaf(x) else str(x.dtype)}
                for n, x in trees.flat(base).items()},
    'parameters': trees.count(base),
    'bytes': trees.size_bytes(base),
    'digest': pretrained.digest(folder),
    **({'bits_per_parameter': bits_per_parameter(base)} if scheme else {}),
    'head': pretrained.load_head(folder) is not None,
    'tokenizer': None if tokenizer is None else {
      'vocab_size': tokenizer.vocab_size, 'adds_bos': tokenizer.adds_bos,
      'chat_template': tokenizer.chat_template is not None, **tokenizer.special_tokens},
  }


def _of_adapter(folder: str) -> dict:
  modules, head = peft_format.inspect(folder)
  return {
    'kind': 'adapter', 'modules': modules, 'head': head,
    'parameters': sum(m['parameters'] for m in modules.values()) + (head or 0),
  }


def lines(report: dict) -> str:
  """The result of `of` as lines: a tensor or a module each, then the totals."""
  text = []
  for path, t in report.get('tensors', {}).items():
    text.append(f'{path:<44} {str(t["shape"]):<24} {t["dtype"]}')
  for name, m in report.get('modules', {}).items():
    text.append(f'{name:<48} rank {m["rank"]:<4} scale {m["scale"]:<8.4g} {m["parameters"]:,}')
  for name in ('parameters', 'bytes', 'bits_per_parameter', 'digest', 'head', 'tokenizer'):
    if name in report:
      value = report[name]
      text.append(f'{name:<12} {value:,}' if type(value) is int else f'{name:<12} {value}')
  return '\n'.join(text)
