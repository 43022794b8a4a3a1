"""Trained networks layer by layer: outputs, comparisons over seeds, pictures."""

import pytest
import torch
from matplotlib.image import imread
from mmpretrain.structures import DataSample

from fba_mm import localize
from fba_mm.analysis.activation_maps import activation_maps, draw_activation_maps, shown_image
from fba_mm.analysis.layer_similarity import compare_networks
from fba_mm.analysis.layer_similarity_plot import draw_layer_similarity
from fba_mm.analysis.trained_network import UNTRAINED, TrainedNetwork, validation_samples
from fba_mm.errors import LocalLearningError

from .small_configs import classifier, detector


def samples(count=12, sizes=((32, 32),)):
    generator = torch.Generator().manual_seed(0)
    return [
        dict(
            inputs=torch.randint(0, 256, (3, *sizes[i % len(sizes)]), generator=generator),
            data_samples=DataSample(),
        )
        for i in range(count)
    ]


def untrained(cfg=None, seed=0):
    return TrainedNetwork.load(cfg or classifier('BN'), UNTRAINED, seed=seed)


def test_layers_are_what_the_backbone_computes():
    network = untrained()
    images = network.preprocessed(samples(4))
    seen = []
    for block in (*network.backbone.layer1, *network.backbone.layer4):
        block.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        (output,) = network.backbone(images)
    expected, seen = seen[:], seen.clear() or seen
    layers = dict(network.layers(images))
    for name, value in zip(('layer1.0', 'layer1.1', 'layer4.0', 'layer4.1'), expected):
        assert torch.equal(layers[name], value), name
    assert torch.equal(layers['layer4.1'], output)
    assert not network.model.training


def test_images_of_several_sizes_are_padded_after_preprocessing():
    """The mean is 127.5: what is padded before it would be -2."""
    network = untrained()
    images = network.preprocessed(samples(2, sizes=((32, 24), (16, 32))))
    assert images.shape == (2, 3, 32, 32)
    assert not images[0, :, :, 24:].any() and not images[1, :, 16:].any()
    assert images[0, :, :, :24].all()


def test_stock_and_local_weights_are_the_same_network(tmp_path):
    stock = classifier('BN')
    local = localize(stock, 3)
    one = untrained(stock)
    path = tmp_path / 'stock.pth'
    torch.save(dict(state_dict=one.model.state_dict()), path)
    other = TrainedNetwork.load(local, str(path))
    assert other.is_cut and not one.is_cut
    assert other.layer_names == one.layer_names
    assert len(other.module_ends()) == 3 and other.module_ends()[-1] == one.layer_names[-1]
    assert one.module_ends() == ['layer1.1', 'layer2.1', 'layer3.1', 'layer4.1']
    assert one.module_ends(3) == other.module_ends()
    (found,) = compare_networks({'stock': [one], 'local': [other]}, samples(), 6)
    torch.testing.assert_close(found.same_layer, torch.ones_like(found.same_layer))
    assert found.module_ends == other.module_ends()


def test_seeds_are_averaged_over_pairs(tmp_path):
    first, second, third = (untrained(seed=seed) for seed in range(3))
    images = samples()
    alone, together = (
        compare_networks(networks, images, 6)
        for networks in ({'A': [first], 'B': [third]}, {'A': [first, second], 'B': [third]})
    )
    (other,) = compare_networks({'A': [second], 'B': [third]}, images, 6)
    own, mean = together
    assert own.second == 'A, another seed' and len(own.matrices) == 1
    assert own.same_layer.max() < 0.999
    torch.testing.assert_close(mean.matrix, (alone[0].matrix + other.matrix) / 2)
    torch.testing.assert_close(mean.averaged[0], alone[0].matrix.mean(0))
    figure = draw_layer_similarity(together, tmp_path / 'new/cka.png', 'Title')
    assert imread(tmp_path / 'new/cka.png').ndim == 3
    legends = [
        text.get_text()
        for axes in figure.axes
        if axes.get_legend()
        for text in axes.get_legend().texts
    ]
    assert legends == ['A, another seed', 'B'] * 2
    (itself,) = compare_networks({'A': [first]}, images, 6)
    assert itself.second == 'A'
    torch.testing.assert_close(itself.same_layer, torch.ones_like(itself.same_layer))


def test_networks_of_other_depths(tmp_path):
    """There is no counterpart of each layer: the average alone is drawn, over depth."""
    deep = untrained(classifier('BN', depth=34))
    networks = {'R18': [untrained()], 'R34': [deep], 'other': [untrained(seed=1)]}
    found = compare_networks(networks, samples(), 6)
    assert found[0].matrix.shape == (9, 17) and not found[0].are_aligned
    assert 'same_layer' not in found[0].to_dict() and 'same_layer' in found[1].to_dict()
    figure = draw_layer_similarity(found, tmp_path / 'cka.png')
    assert 'depth [%]' in [axes.get_xlabel() for axes in figure.axes]


def test_refused():
    with pytest.raises(LocalLearningError, match='12 images are fewer than a batch of 64'):
        compare_networks({'A': [untrained()]}, samples(), 64)
    with pytest.raises(LocalLearningError, match='no val_dataloader'):
        validation_samples(classifier(), 4)
    with pytest.raises(LocalLearningError, match='no layer nine: the network has stem'):
        activation_maps(untrained(), samples(1), ['nine'])


def test_activation_maps_show_where(tmp_path):
    """Norms over channels, from the least to the greatest of an image, as large as the image."""
    network = untrained(localize(detector(), 3))
    image = samples(2, sizes=((64, 96),))
    ends = network.module_ends()
    maps = activation_maps(network, image, ends)
    assert list(maps) == ends
    layers = dict(network.layers(network.preprocessed(image)))
    for name, found in maps.items():
        assert found.shape == (2, 64, 96)
        norms = layers[name].norm(dim=1)
        # The strongest place of the layer is the strongest of the picture.
        row, column = divmod(int(norms[0].argmax()), norms.shape[2])
        stride = 64 / norms.shape[1]
        y, x = divmod(int(found[0].argmax()), 96)
        assert (
            abs((y + 0.5) / stride - row - 0.5) < 1 and abs((x + 0.5) / stride - column - 0.5) < 1
        )
    figure = draw_activation_maps(
        [shown_image(one) for one in image],
        {'FBA': maps},
        tmp_path / 'maps.png',
        boxes=[[(1, 2, 30, 40)], []],
    )
    assert imread(tmp_path / 'maps.png').ndim == 3
    assert [axes.get_title() for axes in figure.axes[:4]] == ['', *ends]


def test_colours_of_files_and_of_arrays():
    sample = samples(1)[0]
    as_it_is = shown_image(sample)
    sample['data_samples'].set_metainfo(dict(img_path='a.png'))
    assert (shown_image(sample) == as_it_is[..., ::-1]).all()
