"""Prompt tuning: PEFT's PROMPT_TUNING, the soft prompt [P, D] itself."""

import jax.numpy as jnp
import numpy as np

from perl import trees
from perl.hub.adapters import _virtual_tokens as virtual_tokens
from perl.hub.adapters._config import Saved, Written
from perl.peft.methods.prompt import SITE, Prompt
from perl.types import Tree

NODES = (Prompt,)


def load(saved: Saved, base: Tree, heads: int) -> Tree:
  """The tree with the soft prompt beside the embeddings."""
  del heads
  width = trees.flat(base)['embed/embedding'].shape[-1]
  x = virtual_tokens.read(saved, width, (
    'prompt_tuning_init', 'prompt_tuning_init_text', 'tokenizer_name_or_path', 'tokenizer_kwargs'))
  return trees.nest({SITE: Prompt(jnp.array(x))})


def save(nodes: dict[str, Prompt], base: Tree, heads: int) -> Written:
  """Fields and tensors of the soft prompt."""
  del heads
  (node,) = nodes.values()
  tokens = np.asarray(node.tokens)
  return {
    'peft_type': 'PROMPT_TUNING', 'num_virtual_tokens': len(tokens), 'token_dim': tokens.shape[1],
    'num_transformer_submodules': 1, 'prompt_tuning_init': 'RANDOM',
    'num_layers': len(trees.flat(base)['layers/block/attn/k/kernel']),
  }, {virtual_tokens.NAME: tokens}
