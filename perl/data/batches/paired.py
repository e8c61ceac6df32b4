"""Two endless streams of batches as one, whose place in both is saved together."""

from perl.types import Batch

PREFIX = 'aside_'


class Paired:
  """Batches of the first stream, with those of the second under names of their own."""

  def __init__(self, first, second):
    self.first, self.second = first, second

  def __next__(self) -> Batch:
    """{name: array of the first} | {'aside_' + name: array of the second}."""
    aside = next(self.second)
    return next(self.first) | {f'{PREFIX}{name}': x for name, x in aside.items()}

  def get_state(self) -> dict:
    """The place in both."""
    return {'first': self.first.get_state(), 'second': self.second.get_state()}

  def set_state(self, state: dict) -> None:
    """Goes to a place that `get_state` gave."""
    self.first.set_state(state['first'])
    self.second.set_state(state['second'])


def split(batch: Batch) -> tuple[Batch, Batch]:
  """(the first stream's part of a batch, the second's; {} where there is one stream)."""
  aside = {name.removeprefix(PREFIX): x for name, x in batch.items() if name.startswith(PREFIX)}
  return {name: x for name, x in batch.items() if not name.startswith(PREFIX)}, aside
