"""What a step needs by its mathematics: operations, bytes; and what machines state as their peak.

A multiply-add is two operations. Attention is counted as the full square, though half of it is
masked; the rank-8 products of LoRA are left out (2 % at width 512, 6 % at width 128).
"""

from experiments.bench import work

PEAKS = {'H200': (989_000.0, 4.8e12), 'H100': (989_000.0, 3.35e12)}
"""Device name -> GFLOP/s in bfloat16 (dense), bytes per second of its memory, as NVIDIA states."""

ITEM_BYTES = {'float32': 4, 'bfloat16': 2}


def stated(device: str) -> tuple[float, float] | None:
  """(GFLOP/s, bytes per second) of a device by its name; None where none is known."""
  return next((peak for name, peak in PEAKS.items() if name in device), None)


def layer_weights(s: work.Size) -> int:
  """Elements of all layers' matrices."""
  attention = 2 * s.width * s.head_dim * (s.heads + s.kv_heads)
  return s.layers * (attention + 3 * s.width * s.mlp_width)


def forward(s: work.Size, rows: int, length: int, read: int, keys: int = 0) -> float:
  """Operations of a forward pass.

  Args:
    s: the model's shape.
    rows, length: of the tokens.
    read: positions of each row whose logits are formed.
    keys: positions that each token attends to; 0 for `length`.
  """
  attention = 4 * s.layers * s.attention_width * (keys or length)
  unembed = 2 * s.vocab * s.width * read
  return rows * ((2 * layer_weights(s) + attention) * length + unembed)


def lora_step(s: work.Size, rows: int, length: int, read: int) -> float:
  """Operations of forward and backward with a frozen base.

  A frozen matrix, the unembedding among them, has a gradient to its input alone: 4 per element.
  Attention has one to both of its factors: three times the forward.
  """
  attention = 4 * s.layers * s.attention_width * length
  unembed = 4 * s.vocab * s.width * read
  return rows * ((4 * layer_weights(s) + 3 * attention) * length + unembed)


def sampling(s: work.Size) -> float:
  """Operations of a prefill and new - 1 steps, each over the keys there are by then."""
  steps = sum(forward(s, s.rows, 1, 1, keys=s.prompt + i) for i in range(1, s.new))
  return forward(s, s.rows, s.prompt, 1) + steps


def gflop(suite: str, size: str) -> float:
  """Billions of operations of one LoRA step (or one batch of responses)."""
  s, total = work.SIZES[size], 0.0
  whole = s.prompt + s.new
  if suite == 'rm':
    total = lora_step(s, 2 * s.pairs, s.length, 0)
  elif suite == 'sft':
    total = lora_step(s, 2 * s.pairs, s.length, s.length - 1)
  elif suite == 'decode':
    total = sampling(s)
  elif suite == 'rl':
    total = (sampling(s) + forward(s, s.rows, whole, s.new)  # reference
             + forward(s, s.rows, whole, 0)  # reward model
             + lora_step(s, s.rows, whole, s.new))
  return total / 1e9


def decode_bytes(size: str, dtype: str) -> float:
  """Bytes that sampling a batch must read: for each token all matrices once, and the cache so far.

  Activations, the writing of the cache and LoRA's matrices are left out.
  """
  s = work.SIZES[size]
  weights = layer_weights(s) + s.vocab * s.width
  cache = sum(2 * s.rows * s.layers * s.kv_heads * s.head_dim * (s.prompt + i)
              for i in range(1, s.new))
  return float(weights * s.new + cache) * ITEM_BYTES[dtype]
