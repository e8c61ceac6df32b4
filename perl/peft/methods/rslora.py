"""rsLoRA: LoRA with s = alpha / sqrt(r) (Kalajdzievski, arXiv 2312.03732).

With alpha / r the adapter's output shrinks as r grows; with the root it does not.
"""

import functools

from perl.peft.methods import lora
from perl.peft.methods.lora import LoRA, parameters

__all__ = ['LoRA', 'init', 'parameters']

init = functools.partial(lora.init, rslora=True)
