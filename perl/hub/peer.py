"""What transformers and PEFT compute (extra `hf`), for comparison with ours."""


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
    tokens: i32[B, T], right-padded with 0.
    mask: bool[B, T].
    scored: load it for sequence classification.
  """
  import torch
  import transformers

  positions = torch.tensor(np.maximum(mask.cumsum(-1) - 1, 0))
  kind = transformers.AutoModelForSequenceClassification if scored else (
    transformers.AutoModelForCausalLM)
  options = {'num_labels': 1, 'pad_token_id': 0} if scored else {}
  place = paths.absolute(folder)
  if gguf.is_one(place):
    place, options = place.parent, options | {'gguf_file': place.name}
  model = kind.from_pretrained(
    str(place), dtype=torch.float32, attn_implementation='eager', **options).eval()
  if adapter:
    import peft

    model = peft.PeftModel.from_pretrained(model, adapter).eval()
  with torch.no_grad():
    result = model(
      input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long(),
      position_ids=positions,
    ).logits.float().numpy()
  if not scored:
    return result
  own = paths.of(adapter) / 'perl.json'  # a bias, which theirs has no place for
  bias = documents.Fields(documents.read(own, documents.OBJECT), own).get(
    'head_bias', documents.number(), 0.0) if adapter and own.is_file() else 0.0
  return result[:, 0] + bias
