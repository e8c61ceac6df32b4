"""PEFT's adapter_config.json: what it asks for, and what is refused by name."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from perl import documents, patterns
from perl.documents import OBJECT
from perl.hub.config_json import Unsupported

_READ = frozenset((
  'peft_type', 'r', 'lora_alpha', 'lora_dropout', 'rank_pattern', 'alpha_pattern', 'use_rslora',
  'use_dora', 'modules_to_save', 'bias', 'init_lora_weights', 'task_type',
))
_IRRELEVANT = frozenset((
  # Which modules are adapted is told by the tensors; the others change no function once trained.
  'target_modules', 'exclude_modules', 'layers_to_transform', 'layers_pattern', 'auto_mapping',
  'base_model_name_or_path', 'revision', 'inference_mode', 'fan_in_fan_out', 'peft_version',
  'megatron_core', 'runtime_config', 'qalora_group_size', 'eva_config', 'ensure_weight_tying',
))
_HEADS = ('score', 'classifier')
CONFIG = 'adapter_config.json'
RANK = documents.whole(1, 2**16)
_ALPHA, _NAMES = documents.number(-1e9, 1e9), documents.items(documents.TEXT)
_KINDS = {
  'peft_type': documents.TEXT, 'task_type': documents.TEXT, 'bias': documents.TEXT,
  'lora_alpha': _ALPHA, 'lora_dropout': documents.number(0, 1),
  'vera_dropout': documents.number(0, 1), 'modules_to_save': _NAMES,
  'rank_pattern': documents.mapping(RANK, 2**16), 'alpha_pattern': documents.mapping(_ALPHA, 2**16),
  **dict.fromkeys(('use_rslora', 'use_dora', 'save_projection'), documents.FLAG),
  **dict.fromkeys(('num_virtual_tokens', 'num_transformer_submodules'), documents.whole(0, 2**24)),
}
"""What the fields that are read have to be, where they are not null."""


class Saved(NamedTuple):
  """An adapter's folder, as it was read."""

  tensors: dict[str, np.ndarray]  # by name
  about: dict[str, Any]  # what is in adapter_config.json
  file: epath.Path  # that file


Written = tuple[dict[str, Any], dict[str, np.ndarray]]
"""(fields of adapter_config.json, tensors by name)."""


class LoraConfig(NamedTuple):
  """Rank and scale of each module."""

  default_rank: int
  default_alpha: float
  ranks: dict[str, int]
  alphas: dict[str, float]
  rslora: bool
  dropout: float
  where: str = CONFIG
  dora: bool = False

  def of(self, modules: Iterable[str]) -> dict[str, tuple[int, float]]:
    """{module: (rank, scale)} of 'model.layers.0.self_attn.q_proj', ...

    A pattern matches a module whole, or from a '.' on; the first that matches counts.
    """
    modules = list(modules)
    ranks = self._matching(self.ranks, modules, self.default_rank)
    alphas = self._matching(self.alphas, modules, self.default_alpha)
    return {name: (rank, self._scale(alpha, rank))
            for name, rank, alpha in zip(modules, ranks, alphas)}

  def _matching(self, values: dict[str, Any], modules: list[str], default: Any) -> list[Any]:
    found = [default] * len(modules)
    for pattern, value in reversed(values.items()):
      fits = patterns.matching(pattern, modules, self.where, before=r'(?:.*\.)?')
      found = [value if fit else old for fit, old in zip(fits, found)]
    return found

  @property
  def default_scale(self) -> float:
    """Where no pattern matches."""
    return self._scale(self.default_alpha, self.default_rank)

  def _scale(self, alpha: float, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r)."""
    return alpha / (rank**0.5 if self.rslora else rank)


def parse(file: epath.Path) -> dict[str, Any]:
  """What is in the file.

  Raises:
    FileNotFoundError: no such file.
    Unsupported: it holds no JSON object, or a field of another type than PEFT writes.
  """
  if not file.is_file():
    names = sorted(p.name for p in file.parent.iterdir())[:8] if file.parent.is_dir() else []
    raise FileNotFoundError(
      f'expected {file.name} in {file.parent}, found {", ".join(names) or "nothing"}; give the '
      'folder that PEFT saved')
  about = documents.read(file, OBJECT, remedy='save it again', error=Unsupported)
  for name, kind in _KINDS.items():
    if about.get(name) is not None:
      documents.check(about[name], kind, name, file, remedy='save it again', error=Unsupported)
  return about


def lora(about: dict[str, Any], file: epath.Path) -> LoraConfig:
  """The LoRA, or DoRA, that the parsed file asks for.

  Raises:
    Unsupported: another method, or an option that changes the function and is not known.
  """
  check(about, file, {
    'peft_type': lambda x: x == 'LORA',
    'r': RANK.fits,
    # The others begin from a changed base (PiSSA, OLoRA, LoftQ, CorDA), which is not in the file.
    'init_lora_weights': lambda x: x in (None, True, False, 'gaussian', 'orthogonal', 'eva'),
  }, read=_READ, what='a plain LoRA')
  alpha = documents.check(about.get('lora_alpha', 8), _ALPHA, 'lora_alpha', file,
                          remedy='write the one that it was trained with', error=Unsupported)
  return LoraConfig(
    default_rank=about['r'], default_alpha=float(alpha),
    ranks=_or(about.get('rank_pattern'), {}), alphas=_or(about.get('alpha_pattern'), {}),
    rslora=bool(about.get('use_rslora')), dropout=float(_or(about.get('lora_dropout'), 0.0)),
    where=str(file), dora=bool(about.get('use_dora')),
  )


def _or(value: Any, default: Any) -> Any:
  return default if value is None else value


def check(
  about: dict[str, Any], file: epath.Path, expected: dict[str, Callable[[Any], bool]], *,
  read: Iterable[str], what: str = '',
) -> None:
  """Requires fields that are known, with values that fit.

  Args:
    about: the parsed file.
    file: it.
    expected: {field: whether a value fits}; such fields must be there where None does not fit.
    read: the other fields that may be set.
    what: the file should be, for the error.

  Raises:
    Unsupported: names the fields.
  """
  expected = {
    'bias': lambda x: x in (None, 'none'),
    'modules_to_save': lambda x: not x or all(name in _HEADS for name in x),
    'task_type': lambda x: x in (None, 'CAUSAL_LM', 'SEQ_CLS', 'FEATURE_EXTRACTION'),
    **expected,
  }
  wrong = {name: about.get(name) for name, fits in expected.items() if not fits(about.get(name))}
  wrong |= {
    name: value for name, value in about.items()
    if name not in {*expected, *read, 'peft_type'} | _IRRELEVANT
    and value not in (None, False, [], {}, '')}
  if wrong:
    what = what or f'known options of peft_type {about["peft_type"]}'
    raise Unsupported(
      f'expected {what} in {file}, found {wrong!r:.400}; that is not supported: merge such an '
      'adapter where it was made, and load the merged model')


def describe(
  modules: dict[str, tuple[int, float]], *, every: dict[str, list[str]], dropout: float,
  dora: bool, fan_in_fan_out: bool,
) -> dict[str, Any]:
  """The fields of adapter_config.json for LoRA of these modules.

  Args:
    modules: {full name: (rank, scale)}.
    every: {name with '{}' for the layer: the full names that the base has}.
    dropout: of the adapter's input.
    dora: they have lengths.
    fan_in_fan_out: the base stores [I, O] (GPT-2).
  """
  alphas = {name: _alpha(scale * rank) for name, (rank, scale) in modules.items()}
  ranks = {name: rank for name, (rank, _) in modules.items()}
  rank = Counter(ranks.values()).most_common(1)[0][0]
  alpha = Counter(alphas.values()).most_common(1)[0][0]
  return {
    'peft_type': 'LORA',
    'r': rank,
    'lora_alpha': alpha,
    'lora_dropout': dropout,
    'rank_pattern': {name: r for name, r in ranks.items() if r != rank},
    'alpha_pattern': {name: a for name, a in alphas.items() if a != alpha},
    'target_modules': targets(modules, every),
    'bias': 'none',
    'fan_in_fan_out': fan_in_fan_out,
    'init_lora_weights': True,
    'use_rslora': False,
    'use_dora': dora,
  }


def _alpha(value: float) -> float | int:
  """Whole where it is: PEFT's field is an integer by its hint."""
  return int(value) if value == int(value) else value


def targets(modules: Iterable[str], every: dict[str, list[str]]) -> list[str]:
  """Endings that PEFT resolves to exactly these modules: short where that is unambiguous.

  Args:
    modules: full names.
    every: {name with '{}' for the layer: the full names that the base has}.
  """
  names = set(modules)
  short = lambda template: template.split('.')[-1]
  endings = []
  for template, full in every.items():
    there = names & set(full)
    if there and there != set(full):
      endings += sorted(there)  # some layers only
    elif there:
      clash = [t for t in every if short(t) == short(template)]
      endings.append(short(template) if len(clash) == 1 else template.split('{}.')[-1])
  return endings
