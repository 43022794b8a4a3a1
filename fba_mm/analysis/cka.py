"""How alike two networks' layers are: centered kernel alignment (CKA), in mini-batches."""

from typing import Iterable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from ..errors import LocalLearningError

# The unbiased estimator divides by n (n - 3).
LEAST_IMAGES = 4


def gram_matrices(outputs: Iterable[Tensor]) -> Tensor:
    """How alike the images of a batch are to each layer: inner products of its outputs.

    Outputs are centered first. That changes no unbiased HSIC, and keeps a common offset, which is
    large after a ReLU, from using up the digits.

    Args:
        outputs: Of each layer, (N, ...).

    Returns:
        (layers, N, N), float64.
    """
    found = []
    for output in outputs:
        flat = output.flatten(1).float()
        flat = flat - flat.mean(0)
        found.append((flat @ flat.T).double())
    return torch.stack(found)


def unbiased_hsic(first: Tensor, second: Tensor) -> Tensor:
    """The unbiased estimate of the Hilbert-Schmidt independence criterion.

    Song et al., *Feature Selection via Dependence Maximization*, 2012, equation 5; ``HSIC_1``
    of Nguyen et al., *Do Wide and Deep Networks Learn the Same Things?*, 2021, equation 3.

    Args:
        first: Gram matrices, (A, N, N), N of 4 or more.
        second: Of the same images, (B, N, N).

    Returns:
        (A, B).

    Raises:
        LocalLearningError: There are fewer than 4 images.

    Example:
        >>> k = gram_matrices([torch.randn(8, 5)])
        >>> unbiased_hsic(k, k).shape
        torch.Size([1, 1])
    """
    n = first.shape[-1]
    if n < LEAST_IMAGES:
        raise LocalLearningError(
            f'CKA of {n} images at a time: give a batch of {LEAST_IMAGES} or more'
        )
    # As matrices with a diagonal of zeros.
    first, second = (k - torch.diag_embed(k.diagonal(dim1=1, dim2=2)) for k in (first, second))
    rows, other_rows = first.sum(2), second.sum(2)
    total = first.flatten(1) @ second.flatten(1).T
    total += rows.sum(1)[:, None] * other_rows.sum(1) / ((n - 1) * (n - 2))
    total -= 2 / (n - 2) * rows @ other_rows.T
    return total / (n * (n - 3))


class MinibatchCKA:
    """CKA of every layer of one network with every layer of another, batch by batch.

    Nguyen et al. 2021, equation 2: means over batches of the unbiased HSIC. Their expectation
    doesn't depend on the size of a batch, so no more than a batch has to be held.

    Example:
        >>> cka = MinibatchCKA()
        >>> for images in batches:
        ...     cka.add(gram_matrices(bp(images)), gram_matrices(fba(images)))
        >>> cka.matrix().shape  # layers of bp × layers of fba
        torch.Size([16, 16])
    """

    def __init__(self) -> None:
        self._sums: Optional[Tuple[Tensor, Tensor, Tensor]] = None

    def add(self, first: Tensor, second: Tensor) -> None:
        """Count one batch.

        Args:
            first: From :func:`gram_matrices`, (A, N, N).
            second: The other network's, of the same images, (B, N, N).
        """
        found = unbiased_hsic(first, second), _own_hsic(first), _own_hsic(second)
        if self._sums is None:
            self._sums = found
        else:
            cross, one, other = (a + b for a, b in zip(self._sums, found))
            self._sums = cross, one, other

    def matrix(self) -> Tensor:
        """CKA of what was counted, (A, B): 1 for alike, 0 for unrelated.

        NaN where a layer says the same of all images. An estimate may be a little below 0.

        Raises:
            LocalLearningError: Nothing was counted.
        """
        if self._sums is None:
            raise LocalLearningError('no batch to compare networks with: give some images')
        cross, first, second = self._sums
        # An estimate of a layer that tells no images apart may be negative, too.
        scale = first.clamp(min=0).sqrt()[:, None] * second.clamp(min=0).sqrt()
        return torch.where(scale > 0, cross / scale, torch.full_like(cross, float('nan')))


def _own_hsic(grams: Tensor) -> Tensor:
    return torch.cat([unbiased_hsic(k[None], k[None])[0] for k in grams])


def batches_of(samples: Sequence, size: int) -> List[Sequence]:
    """Samples in batches of one size; what is left over at the end is too few to count.

    Args:
        samples: All of them.
        size: Of a batch.
    """
    whole = len(samples) // size * size
    return [samples[start : start + size] for start in range(0, whole, size)]
