"""Super-resolution side by side."""

import numpy as np
import pytest
from matplotlib.image import imread
from mmengine.registry import MODELS
from PIL import Image

from fba_mm.errors import LocalLearningError

from ..super_resolution import editor
from .in_process import load_tool

tool = load_tool('analysis_tools/draw_super_resolution')
draw_super_resolution, enlarge = tool.draw_super_resolution, tool.enlarge
hardest_place, psnr_on_luma = tool.hardest_place, tool.psnr_on_luma


def photo(height=60, width=72, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 12, width // 12, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.BICUBIC))


def halved(image):
    return np.asarray(
        Image.fromarray(image).resize((image.shape[1] // 2, image.shape[0] // 2), Image.BICUBIC)
    )


def test_a_model_enlarges():
    model = MODELS.build(editor(2))
    made = enlarge(model, halved(photo()))
    assert made.shape == (60, 72, 3) and made.dtype == np.uint8
    assert not model.training
    np.testing.assert_array_equal(made, enlarge(model, halved(photo())))


def test_psnr_equals_the_formula():
    """Luma of ITU-R BT.601, on the picture without its border."""
    truth = photo()
    image = np.clip(
        truth.astype(int) + np.random.default_rng(1).integers(-9, 10, truth.shape), 0, 255
    ).astype(np.uint8)

    def luma(rgb):
        return rgb[2:-2, 2:-2].astype(float) @ (65.481, 128.553, 24.966) / 255 + 16

    error = np.mean(np.square(luma(image) - luma(truth)))
    expected = 10 * np.log10(255**2 / error)
    assert psnr_on_luma(image, truth, 2) == pytest.approx(expected, abs=0.01)


def test_the_hardest_place():
    truth = photo()
    image = truth.copy()
    image[30:38, 50:58] ^= 255
    assert hardest_place(image, truth, 8) == (50, 30)


def test_the_picture(tmp_path):
    truth = photo()
    bicubic = np.asarray(Image.fromarray(halved(truth)).resize((72, 60), Image.BICUBIC))
    row = dict(low=halved(truth), truth=truth, FBA=truth)
    figure = draw_super_resolution([row, row], tmp_path / 'new/compare.png', 2, ['one', 'two'], 24)
    assert imread(tmp_path / 'new/compare.png').ndim == 3
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        *(['one'] + (c := ['low resolution', 'bicubic', 'FBA', 'ground truth'])),
        *(['two'] + c),
    ]
    assert figure.axes[2].get_xlabel() == f'{psnr_on_luma(bicubic, truth, 2):.2f} dB'
    x, y = hardest_place(bicubic, truth, 24)
    np.testing.assert_array_equal(
        figure.axes[4].images[0].get_array(), truth[y : y + 24, x : x + 24]
    )
    assert set(row) == {'low', 'truth', 'FBA'}


def test_refused(tmp_path):
    with pytest.raises(LocalLearningError, match='no picture to draw'):
        draw_super_resolution([], tmp_path / 'x.png', 2, [])
    row = dict(low=halved(photo()), truth=photo())
    with pytest.raises(LocalLearningError, match='one has 60x72 px, less than the square of 64'):
        draw_super_resolution([row], tmp_path / 'x.png', 2, ['one'], 64)
