"""What a dataset yields, before tokens: five kinds of example, as text.

`group` is the leak-free grouping key of an example: examples that share it must lie on the same
side of every split, fold and bootstrap draw. `meta` holds what reports show and training ignores.

`messages` is the chat that an example comes from, if it does: dicts {role, content, ...} as the
data hold them, for chat.py to render. A document has them all, a prompt has its context; the others
have the context, then the response: of a preference the chosen one, then the rejected one. Tools
that the chat may call are in meta['tools'].
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Document:
  """Text to be learnt whole, by next-token prediction."""

  text: str
  group: str = ''
  meta: dict[str, Any] = dataclasses.field(default_factory=dict)
  messages: tuple[dict[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """A response worth imitating after its prompt."""

  prompt: str
  response: str
  group: str = ''
  meta: dict[str, Any] = dataclasses.field(default_factory=dict)
  messages: tuple[dict[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Preference:
  """Two responses to one prompt, the chosen one better; margin >= 0 says by how much, if known."""

  prompt: str
  chosen: str
  rejected: str
  margin: float = 0.0
  group: str = ''
  meta: dict[str, Any] = dataclasses.field(default_factory=dict)
  messages: tuple[dict[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Labelled:
  """A response with its thumb: label 1 is up, 0 is down."""

  prompt: str
  response: str
  label: float
  group: str = ''
  meta: dict[str, Any] = dataclasses.field(default_factory=dict)
  messages: tuple[dict[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A prompt that the policy is to answer."""

  prompt: str
  group: str = ''
  meta: dict[str, Any] = dataclasses.field(default_factory=dict)
  messages: tuple[dict[str, Any], ...] = ()


Example = Document | Demonstration | Preference | Labelled | Prompt

SPLITS = ('train', 'dev', 'test')
KINDS = {
  'document': Document,
  'demonstration': Demonstration,
  'preference': Preference,
  'labelled': Labelled,
  'prompt': Prompt,
}


def check_request(dataset: str, split: str, kind: str) -> None:
  """Raises ValueError for a split or a kind that no dataset has."""
  for what, found, expected in (('split', split, SPLITS), ('kind', kind, tuple(KINDS))):
    if found not in expected:
      raise ValueError(f'{dataset}: expected a {what} among {", ".join(expected)}; '
                       f'found {found!r}; ask for one of these')
