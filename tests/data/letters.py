"""A vocabulary of letters, for tests of what is made of ids."""

import dataclasses

BOS, EOS = 1, 2


@dataclasses.dataclass
class Letters:
  """a is 10, b is 11, ...; '.' is eos, '^' is bos."""

  bos_id: int = BOS
  eos_id: int = EOS
  pad_id: int = EOS
  adds_bos: bool = True
  stop_ids: tuple[int, ...] = (EOS,)

  def encode_batch(self, texts):
    special = {'.': self.eos_id, '^': self.bos_id}
    return [[special.get(c, ord(c) - ord('a') + 10) for c in text] for text in texts]

  def decode(self, ids, skip_special=True):
    return ''.join(chr(i - 10 + ord('a')) for i in ids if i >= 10)

  def encode_pairs(self, pairs):
    return [(self.encode_batch([first + second])[0], len(first)) for first, second in pairs]
