"""A stack of symbols as one long number: asymmetric numeral systems, by the library constriction.

Pushing a symbol of probability p makes the number 1/p times as large, and so log2 1/p bits longer; popping it, with the
same probabilities, gives back symbol *and* bits. So a stack of n random bits can also be popped with any distribution:
what comes is a draw from it, for which the bits pay, and pushing the draw restores them. That is what bits-back
coding needs.

Probabilities are rounded to multiples of 2⁻²⁴, and none is zero: whatever they are, every symbol has a code. Whoever
pops must have the very probabilities of whoever pushed, to the last bit.

Duda 2013, "Asymmetric numeral systems" (arXiv 1311.2540); Bamler 2022, "Understanding entropy coding with asymmetric
numeral systems (ANS): a statistician's perspective" (arXiv 2201.01741).
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt32
from torch import Tensor

from imago.errors import UserError, how_to_install

WORD = 32  # bits of the words that the number is kept in


class Stack:
    """The number.

    Args:
        words: of a stack that was written; the last is the top, and none of them pushed first is missing.

    Raises:
        UserError: constriction is not installed.
        ValueError: no stack has these words.
    """

    def __init__(self, words: UInt32[np.ndarray, " words"] | None = None) -> None:
        try:
            import constriction
        except ImportError:
            raise UserError(f"compress: needs constriction; {how_to_install('compress')}") from None
        self._ans: Any = constriction.stream.stack.AnsCoder(*([] if words is None else [words]))
        self._categorical: Any = constriction.stream.model.Categorical(perfect=False)
        self._uniform: Any = constriction.stream.model.Uniform

    @property
    def bits(self) -> int:
        """How long it is."""
        return int(self._ans.num_valid_bits())

    @property
    def words(self) -> UInt32[np.ndarray, " words"]:
        """What it consists of: to be written, and read again by the constructor."""
        words: np.ndarray = self._ans.get_compressed()
        return words

    def push(self, symbols: Int64[Tensor, " n"], probabilities: Float[Tensor, "n symbols"]) -> None:
        """Push symbols, each from a distribution of its own, given up to a factor in float64."""
        self._ans.encode_reverse(_array(symbols), self._categorical, _finite(probabilities))

    def pop(self, probabilities: Float[Tensor, "n symbols"]) -> Int64[Tensor, " n"]:
        """What :meth:`push` was given with these probabilities; on their device."""
        symbols = self._ans.decode(self._categorical, _finite(probabilities))
        return torch.from_numpy(symbols).long().to(probabilities.device)

    def push_uniform(self, symbols: Int64[Tensor, " n"], size: int) -> None:
        """Push symbols of which all of 0..size-1 are as probable; size is at least 2."""
        self._ans.encode_reverse(_array(symbols), self._uniform(size))

    def pop_uniform(self, n: int, size: int) -> Int64[Tensor, " n"]:
        """What :meth:`push_uniform` was given, on the CPU."""
        return torch.from_numpy(self._ans.decode(self._uniform(size), n)).long()


def _array(symbols: Tensor) -> np.ndarray:
    array: np.ndarray = symbols.cpu().int().contiguous().numpy()
    return array


def _finite(probabilities: Tensor) -> np.ndarray:
    array: np.ndarray = probabilities.cpu().double().contiguous().numpy()
    if not np.isfinite(array).all():
        raise UserError("the model gives probabilities that are no numbers, so it can code nothing; train it anew")
    return array
