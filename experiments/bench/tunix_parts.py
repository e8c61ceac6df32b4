"""What the suites of peer_tunix share: its Llama 3 with our weights, qwix's LoRA, words."""

import argparse
import dataclasses
import time

from experiments.bench import work


class Words:
  """`work.text` as the tokenizer that Tunix asks for; no BOS, so that prompts keep their length."""

  def encode(self, text, **_):
    return work.ids(str(text))

  def decode(self, ids, **_):
    return work.text(int(i) for i in ids)

  def bos_id(self):
    return None

  def eos_id(self):
    return work.EOS

  def pad_id(self):
    return work.PAD


class Clock:
  """Training hooks that note when each step starts, and the loss that each step ends with."""

  def __init__(self):
    self.starts: list[float] = []
    self.losses: list[float] = []

  def on_train_step_start(self, *_):
    self.starts.append(time.perf_counter())

  def on_train_step_end(self, trainer, step, loss, *_):
    self.losses.append(float(loss))  # waits for the step

  def on_train_end(self, *_):
    self.starts.append(time.perf_counter())

  def on_train_start(self, *_):
    pass

  on_eval_step_start = on_eval_step_end = on_train_start


def one_device():
  """A mesh of the first device."""
  import jax
  import numpy as np

  return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ('fsdp', 'tp'))


def base(args: argparse.Namespace, *, scored: bool = False):
  """Its Llama 3 with the weights of the folder; a scored one has a scalar head for its logits."""
  import jax.numpy as jnp
  import numpy as np
  from flax import nnx
  from tunix.models.llama3 import model as llama
  from tunix.models.llama3 import params

  s = work.SIZES[args.size]
  config = llama.ModelConfig(
    num_layers=s.layers, vocab_size=s.vocab, embed_dim=s.width, hidden_dim=s.mlp_width,
    num_heads=s.heads, head_dim=s.head_dim, num_kv_heads=s.kv_heads,
    rope_theta=int(work.ROPE_THETA), norm_eps=work.NORM_EPS, weight_tying=True)
  model = params.create_model_from_safe_tensors(
    str(args.weights / 'base'), config, one_device(), dtype=jnp.dtype(args.dtype))
  if scored:
    model.lm_head = nnx.Linear(s.width, 1, use_bias=False, rngs=nnx.Rngs(0))
    model.lm_head.kernel.value = jnp.asarray(np.load(args.weights / 'score.npy')[:, None])
    model.config = dataclasses.replace(config, weight_tying=False)  # else it never calls lm_head
  return model


def with_lora(args: argparse.Namespace, model):
  """The model with qwix's LoRA, its A matrices those of the folder (B = 0)."""
  import jax.numpy as jnp
  import qwix
  from flax import nnx
  from safetensors.numpy import load_file

  provider = qwix.LoraProvider(module_path=f'.*({"|".join(work.TARGETS)}).*', rank=work.RANK,
                               alpha=work.ALPHA)
  model = qwix.apply_lora_to_model(model, provider, rngs=nnx.Rngs(1), **model.get_model_input())
  stored = load_file(args.weights / 'policy' / 'adapter_model.safetensors')
  for name, a in stored.items():
    *_, layer, _, module, kind, _ = name.split('.')
    if kind == 'lora_A':
      place = getattr(model.layers[int(layer)].attn, module).w_lora_a
      place.value = jnp.asarray(a.T.reshape(place.value.shape), place.value.dtype)
  return model


def optimizer():
  """Clipping and AdamW without decay, as everybody's."""
  import optax

  return optax.chain(optax.clip_by_global_norm(work.CLIP),
                     optax.adamw(work.LEARNING_RATE, weight_decay=0.0))
