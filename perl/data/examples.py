"""What a dataset yields, before tokens: seven kinds of example, as text.

`group` is the leak-free grouping key of an example: examples that share it must lie on the same
side of every split, fold and bootstrap draw. `meta` holds what reports show and training ignores.

`messages` is the chat that an example comes from, if it does: dicts {role, content, ...} as the
data hold them, for chat.py to render. A document has them all, a prompt has its context; the others
have the context, then the response: of a preference the chosen one, then the rejected one, of a
ranked example all of them in order. Tools that the chat may call are in meta['tools'].
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Origin:
  """Where an example comes from: what all kinds have, beside their TEXTS: fields that hold text."""

  TEXTS = ()

  group: str = ''
  meta: dict[str, Any] = dataclasses.field(default_factory=dict)
  messages: tuple[dict[str, Any], ...] = ()

  @property
  def answers(self) -> tuple[str, ...]:
    """The responses, in the order of their messages."""
    return tuple(getattr(self, name) for name in self.TEXTS[1:])


@dataclasses.dataclass(frozen=True)
class Document(_Origin):
  """Text to be learnt whole, by next-token prediction."""

  TEXTS = ('text',)
  text: str


@dataclasses.dataclass(frozen=True)
class Demonstration(_Origin):
  """A response worth imitating after its prompt."""

  TEXTS = ('prompt', 'response')
  prompt: str
  response: str


@dataclasses.dataclass(frozen=True)
class Preference(_Origin):
  """Two responses to one prompt, the chosen one better; margin >= 0 says by how much, if known."""

  TEXTS = ('prompt', 'chosen', 'rejected')
  prompt: str
  chosen: str
  rejected: str
  margin: float = 0.0


@dataclasses.dataclass(frozen=True)
class Labelled(_Origin):
  """A response with its thumb: label 1 is up, 0 is down."""

  TEXTS = ('prompt', 'response')
  prompt: str
  response: str
  label: float


@dataclasses.dataclass(frozen=True)
class Ranked(_Origin):
  """Responses to one prompt, from the best to the worst, at least two."""

  TEXTS = ('prompt', 'responses')
  prompt: str
  responses: tuple[str, ...]

  @property
  def answers(self) -> tuple[str, ...]:
    """The responses, best first."""
    return self.responses


@dataclasses.dataclass(frozen=True)
class Rated(_Origin):
  """A response with the number that somebody gave it, higher for better."""

  TEXTS = ('prompt', 'response')
  prompt: str
  response: str
  rating: float


@dataclasses.dataclass(frozen=True)
class Prompt(_Origin):
  """A prompt that the policy is to answer."""

  TEXTS = ('prompt',)
  prompt: str


Example = Document | Demonstration | Preference | Labelled | Ranked | Rated | Prompt

SPLITS = ('train', 'dev', 'test')
KINDS = {
  'document': Document,
  'demonstration': Demonstration,
  'preference': Preference,
  'labelled': Labelled,
  'ranked': Ranked,
  'rated': Rated,
  'prompt': Prompt,
}


def digest(examples: Iterable[Example]) -> str:
  """sha256 (hex) of examples in their order: all that they hold but where they were read."""
  sha = hashlib.sha256()
  for example in examples:
    fields = dict(vars(example))
    about = {name: value for name, value in fields.pop('meta').items() if name != 'source'}
    whole = [type(example).__name__, fields, about]
    sha.update(json.dumps(whole, sort_keys=True, default=str).encode())
    sha.update(b'\n')
  return sha.hexdigest()


def row(example: Example) -> tuple:
  """What makes an example the same row as another one: its texts, and what is said of them."""
  fields = {name: value for name, value in vars(example).items()
            if name not in ('group', 'meta', 'messages')}
  return (type(example).__name__, *fields.values())


def check_request(dataset: str, split: str, kind: str, kinds: Collection[str]) -> None:
  """Raises ValueError for a split that no dataset has, or a kind that this one has not."""
  _check(dataset, 'split', split, SPLITS)
  _check(dataset, 'kind', kind, kinds)


def check_parts(dataset: str, parts: Iterable[str], known: Collection[str]) -> None:
  """Raises ValueError for a part that the dataset has not."""
  for part in parts:
    _check(dataset, 'part', part, known)


def _check(dataset: str, what: str, value: str, known: Collection[str]) -> None:
  if value not in known:
    raise ValueError(f'{dataset}: expected a {what} among {", ".join(known)}; found {value!r}; '
                     'ask for one of these')
