"""What transformers and PEFT compute (extra `hf`), for comparison with ours."""

from typing import Any

import numpy as np

from perl import documents, paths
from perl.hub import gguf


def outputs(
  folder: str, adapter: str, tokens: np.ndarray, mask: np.ndarray, *, scored: bool
) -> np.ndarray:
  """Logits f32[B, T, V] of a checkpoint in float32, or scores f32[B] of a reward model.

  Args:
    folder: a Hugging Face folder, or a GGUF file.
    adapter: in PEFT's format, over it; '' for none.
    tokens: i32[B, T], right-padded; what lies under the mask is of no matter.
    mask: bool[B, T].
    scored: load it for sequence classification, and pad as it says: see `scores`.
  """
  import torch
  import transformers

  kind = transformers.AutoModelForSequenceClassification if scored else (
    transformers.AutoModelForCausalLM)
  options = _as_documented(adapter) if scored else {}
  place = paths.absolute(folder)
  if gguf.is_one(place):
    place, options = place.parent, options | {'gguf_file': place.name}
  model = kind.from_pretrained(
    str(place), dtype=torch.float32, attn_implementation='eager', **options).eval()
  if adapter:
    import peft

    model = peft.PeftModel.from_pretrained(model, adapter).eval()
  if not scored:
    return _run(model, np.where(mask, tokens, 0), mask)
  own = paths.of(adapter) / 'perl.json'  # a bias, which theirs has no place for
  bias = documents.Fields(documents.read(own, documents.OBJECT), own).get(
    'head_bias', documents.number(), 0.0) if adapter and own.is_file() else 0.0
  return scores(model, tokens, mask) + bias


def scores(model: Any, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """f32[B] of a classifier of transformers, padded with its config's pad id.

  Rows go one by one where it has none, or none that is an id: so a batch would be refused, or read
  at its last column.
  """
  about = model.config.get_text_config()
  if about.pad_token_id is not None and 0 <= about.pad_token_id < about.vocab_size:
    return _run(model, np.where(mask, tokens, about.pad_token_id), mask)[:, 0]
  rows = [row[real][None] for row, real in zip(tokens, mask)]
  return np.concatenate([_run(model, row, np.ones(row.shape, bool))[:, 0] for row in rows])


def pad_id(folder: str) -> int | None:
  """That of the tokenizer in a folder; None where it has none."""
  import transformers

  if not (paths.of(folder) / 'tokenizer_config.json').is_file():
    return None
  return transformers.AutoTokenizer.from_pretrained(folder).pad_token_id


def _as_documented(adapter: str) -> dict[str, int]:
  """What loads a reward model: docs/checkpoints.md."""
  pad = pad_id(adapter) if adapter else None
  return {'num_labels': 1} | ({} if pad is None else {'pad_token_id': pad})


def _run(model: Any, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
  import torch

  with torch.no_grad():
    return model(
      input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long(),
      position_ids=torch.tensor(np.maximum(mask.cumsum(-1) - 1, 0))).logits.float().numpy()
