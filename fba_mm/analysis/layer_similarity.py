"""How alike the layers of trained networks are, by CKA, over several trainings of each."""

from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, Callable, Dict, Iterable, List, Mapping, Sequence, Tuple

import torch
from torch import Tensor

from ..errors import LocalLearningError
from .cka import MinibatchCKA, batches_of, gram_matrices
from .trained_network import TrainedNetwork


@dataclass
class LayerSimilarity:
    """CKA of every layer of one kind of network with every layer of another.

    Attributes:
        first: Name of the one that others are compared with.
        second: Name of the other.
        first_layers: Names of the first's layers.
        second_layers: Names of the second's.
        matrices: (pairs, first's layers, second's layers), for each pair of trainings.
        module_ends: Last layers of the second's local modules; none without local learning.
    """

    first: str
    second: str
    first_layers: List[str]
    second_layers: List[str]
    matrices: Tensor
    module_ends: List[str]

    @property
    def matrix(self) -> Tensor:
        """The mean over pairs of trainings, (first's layers, second's layers)."""
        return self.matrices.mean(0)

    @property
    def are_aligned(self) -> bool:
        """Whether both have the same layers, so that each has its counterpart."""
        return self.first_layers == self.second_layers

    @property
    def same_layer(self) -> Tensor:
        """Each layer of the second with its counterpart, (pairs, layers)."""
        return self.matrices.diagonal(dim1=1, dim2=2)

    @property
    def averaged(self) -> Tensor:
        """Each layer of the second, averaged over all layers of the first, (pairs, layers)."""
        return self.matrices.mean(1)

    def to_dict(self) -> Dict[str, Any]:
        """Everything as numbers and names, for JSON; NaN is None there."""
        found: Dict[str, Any] = dict(
            first=self.first,
            second=self.second,
            first_layers=self.first_layers,
            second_layers=self.second_layers,
            module_ends=self.module_ends,
            pairs=len(self.matrices),
            matrix=_numbers(self.matrix),
            averaged=_numbers(self.averaged.mean(0)),
        )
        if self.are_aligned:
            found['same_layer'] = _numbers(self.same_layer.mean(0))
        return found


def _numbers(values: Tensor) -> Any:
    if values.dim() > 1:
        return [_numbers(row) for row in values]
    return [None if value != value else round(value, 4) for value in values.tolist()]


def compare_networks(
    networks: Mapping[str, Sequence[TrainedNetwork]],
    samples: Sequence[Any],
    batch_size: int,
    track: Callable[[List[Sequence]], Iterable[Sequence]] = iter,
) -> List[LayerSimilarity]:
    """Compare the layers of trained networks with those of the first, on the same images.

    Args:
        networks: By name, one or several trainings of each, with seeds of their own. What is found
            is averaged over all pairs.
        samples: From :func:`validation_samples`.
        batch_size: Images of a mini-batch, 4 or more.
        track: Goes through the batches and shows how far it is.

    Returns:
        One for each further name. Before them the first with itself, if there are several trainings
        of it, in pairs of different ones: how alike trainings are that differ in their seed alone.
        Where there is one network in all, its layers with each other.

    Raises:
        LocalLearningError: There are fewer images than a batch, or too few in it.

    Example:
        >>> (similarity,) = compare_networks({'BP': [bp], 'FBA': [fba]}, samples, 64)
        >>> similarity.same_layer.mean(0)
    """
    names = list(networks)
    numbered = [(name, network) for name in names for network in networks[name]]
    index: Dict[str, List[int]] = {name: [] for name in names}
    for number, (name, _) in enumerate(numbered):
        index[name].append(number)
    first = names[0]
    pairs: Dict[str, List[Tuple[int, int]]] = {first: list(combinations(index[first], 2))}
    for name in names[1:]:
        pairs[name] = list(product(index[first], index[name]))
    if len(numbered) == 1:
        pairs[first] = [(0, 0)]
    batches = batches_of(samples, batch_size)
    if not batches:
        raise LocalLearningError(
            f'{len(samples)} images are fewer than a batch of {batch_size}: give a smaller one, or '
            'more images'
        )
    wanted = sorted({pair for of_name in pairs.values() for pair in of_name})
    ckas = {pair: MinibatchCKA() for pair in wanted}
    for batch in track(batches):
        grams = [
            gram_matrices(x for _, x in network.layers(network.preprocessed(batch)))
            for _, network in numbered
        ]
        for (one, other), cka in ckas.items():
            cka.add(grams[one], grams[other])
    found = []
    for name in names:
        if pairs[name]:
            one, other = pairs[name][0]
            second = numbered[other][1]
            found.append(
                LayerSimilarity(
                    first,
                    f'{name}, another seed' if name == first and one != other else name,
                    numbered[one][1].layer_names,
                    second.layer_names,
                    torch.stack([ckas[pair].matrix() for pair in pairs[name]]),
                    second.module_ends() if second.is_cut else [],
                )
            )
    return found
