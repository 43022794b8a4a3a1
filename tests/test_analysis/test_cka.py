"""CKA in mini-batches, against a reference that is written out plainly."""

from itertools import permutations

import pytest
import torch

from fba_mm.analysis.cka import MinibatchCKA, batches_of, gram_matrices, unbiased_hsic
from fba_mm.errors import LocalLearningError


def hsic_by_counting(first, second):
    """The U-statistic itself: a mean over all ordered quadruples of different images."""
    one, other = first.tolist(), second.tolist()
    terms = [
        one[s][t] * (other[s][t] + other[u][v] - 2 * other[s][u])
        for s, t, u, v in permutations(range(len(one)), 4)
    ]
    return sum(terms) / len(terms)


def plain_cka(x, y):
    """CKA of all images at once, from features as they are."""
    x, y = (z.flatten(1).double() for z in (x, y))
    one, other = x @ x.T, y @ y.T
    own = hsic_by_counting(one, one) * hsic_by_counting(other, other)
    return hsic_by_counting(one, other) / own**0.5


def features(n, seed=0, offset=0.0):
    """Of two layers each of two networks that see the same images."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 6, generator=generator)

    def layer(width):
        weights = torch.randn(6, width, generator=generator)
        return torch.relu(images @ weights) + offset

    return [layer(5), layer(9).reshape(n, 1, 3, 3)], [layer(4), layer(8)]


def cka_of(first, second, size=None):
    cka = MinibatchCKA()
    for batch in batches_of(range(len(first[0])), size or len(first[0])):
        rows = list(batch)
        cka.add(gram_matrices(x[rows] for x in first), gram_matrices(x[rows] for x in second))
    return cka.matrix()


@pytest.mark.parametrize('offset', [0.0, 100.0])
def test_one_batch_equals_the_plain_reference(offset):
    """A common offset of all features, as large as a hundred times their scatter, doesn't count."""
    first, second = features(7, offset=offset)
    expected = [[plain_cka(x, y) for y in second] for x in first]
    torch.testing.assert_close(
        cka_of(first, second), torch.tensor(expected), rtol=1e-4, atol=1e-4, check_dtype=False
    )


def test_batches_estimate_what_all_images_give():
    """Means over many batches come close to the whole, and a biased estimate would not."""
    first, second = features(2048)
    whole = cka_of(first, second)
    torch.testing.assert_close(cka_of(first, second, 8), whole, rtol=0, atol=0.04)

    def biased(x, y):
        parts = [[gram_matrices([z[i : i + 8]])[0] for z in (x, y)] for i in range(0, 2048, 8)]
        cross, one, other = (
            sum((p[a] * p[b]).sum() for p in parts) for a, b in ((0, 1), (0, 0), (1, 1))
        )
        return cross / (one * other) ** 0.5

    assert abs(biased(first[0], second[0]) - whole[0, 0]) > 0.1


def test_what_it_does_not_look_at():
    """Rotation and scale of features, and the order of images."""
    (x, _), _ = features(64)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(3)))[0]
    order = torch.randperm(64, generator=torch.Generator().manual_seed(4))
    found = cka_of([x], [3 * x @ rotation])
    torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=1e-5)
    unrelated = torch.randn(64, 5, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(
        cka_of([x], [unrelated]), cka_of([x[order]], [unrelated[order]]), rtol=0, atol=1e-5
    )
    assert abs(cka_of([x], [unrelated])) < 0.15


def test_a_layer_that_tells_no_images_apart():
    (x, y), _ = features(16)
    matrix = cka_of([torch.ones_like(x), y], [y])
    assert matrix[0, 0].isnan() and matrix[1, 0] == pytest.approx(1, abs=1e-6)


def test_refused():
    k = gram_matrices([torch.randn(3, 2)])
    with pytest.raises(LocalLearningError, match='CKA of 3 images.*4 or more'):
        unbiased_hsic(k, k)
    with pytest.raises(LocalLearningError, match='no batch'):
        MinibatchCKA().matrix()
