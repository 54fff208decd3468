import math

import _corruptions
import numpy as np
import pytest
from _corruptions import CORRUPTIONS, SEVERITIES, corrupt
from PIL import Image
from scipy.ndimage import gaussian_filter

# The distance to the clean image does not grow with the severities of these: they have
# several parameters, of which some fall.
UNEVEN = {"glass_blur", "elastic_transform", "frost_stand_in"}


def generator(seed=0):
    return np.random.default_rng(seed)


def photographs(n=6):
    """Images that are smooth, coloured and neither black nor white."""
    x = gaussian_filter(generator().standard_normal((n, 3, 32, 32)), (0, 0, 1.5, 1.5))
    return np.clip(128 + 40 * x / x.std(), 20, 235).astype(np.uint8)


def constant(*colour, n=2):
    colour = np.array(colour if len(colour) > 1 else colour * 3, np.uint8)
    return np.broadcast_to(colour[:, None, None], (n, 3, 32, 32)).copy()


def distance(a, b):
    return np.sqrt(np.mean((a.astype(float) - b) ** 2))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_are_reproducible_and_keep_shape_and_type(name):
    X = photographs()
    before = X.copy()
    distances = []
    for severity in SEVERITIES:
        one, same = (corrupt(X, name, severity, generator(3)) for _ in range(2))
        assert one.shape == X.shape
        assert one.dtype == np.uint8
        np.testing.assert_array_equal(one, same)
        distances.append(distance(one, X))
    np.testing.assert_array_equal(X, before)
    assert min(distances) > 0
    if name not in UNEVEN:
        # Of motion_blur 3 and 4 differ in pixels of no weight.
        assert (np.diff(distances) >= 0).all()
        assert distances[-1] > 1.2 * distances[0]


def test_there_are_fifteen_corruptions_of_five_severities():
    assert len(CORRUPTIONS) == 15
    assert all(len(parameters) == 5 for _, parameters in CORRUPTIONS.values())


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "snow", "fog"])
def test_another_generator_draws_something_else(name):
    one, other = (corrupt(photographs(), name, 5, generator(s)) for s in (0, 1))
    assert (one != other).any()


@pytest.mark.parametrize(
    "name",
    [
        "defocus_blur",
        "glass_blur",
        "motion_blur",
        "zoom_blur",
        "contrast",
        "elastic_transform",
        "pixelate",
    ],
)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_one_colour_stays_as_it_is(name, severity):
    X = constant(10, 128, 255)
    np.testing.assert_array_equal(corrupt(X, name, severity, generator()), X)


def test_noise_has_the_variance_that_is_asked_for():
    X = constant(102, n=20)  # 0.4
    gaussian = corrupt(X, "gaussian_noise", 3, generator()) / 255
    assert gaussian.mean() == pytest.approx(0.4, abs=2e-3)
    assert gaussian.std() == pytest.approx(0.08, rel=0.02)
    shot = corrupt(X, "shot_noise", 3, generator()) / 255
    assert shot.mean() == pytest.approx(0.4, abs=2e-3)
    assert shot.std() == pytest.approx(math.sqrt(0.4 / 100), rel=0.02)


def test_impulses_are_black_and_white_in_equal_parts():
    noisy = corrupt(constant(102, n=40), "impulse_noise", 5, generator())
    assert set(np.unique(noisy)) == {0, 102, 255}
    assert np.mean(noisy == 0) == pytest.approx(0.035, rel=0.05)
    assert np.mean(noisy == 255) == pytest.approx(0.035, rel=0.05)


def test_disk():
    box = np.zeros((7, 7))
    box[2:5, 2:5] = 1 / 9
    np.testing.assert_allclose(_corruptions.disk(1.5, 0.1), box, atol=1e-12)
    gaussian = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 0.4**2))
    gaussian[[0, 1, -2, -1]] = 0
    gaussian /= gaussian.sum()
    expected = np.outer(gaussian, gaussian)
    np.testing.assert_allclose(_corruptions.disk(0.3, 0.4), expected, atol=1e-12)


def test_glass_copies_a_neighbour_above_or_left():
    at = np.arange(32)
    # Row and column are the first two channels. The blur of severity 1 is none.
    X = np.stack([*np.meshgrid(at, at, indexing="ij"), 0 * np.ones((32, 32))])
    X = np.broadcast_to(4 * X.astype(np.uint8), (50, 3, 32, 32))
    steps = (X.astype(int) - corrupt(X, "glass_blur", 1, generator())) // 4
    assert (steps[:, :2, :2] == 0).all()
    assert (steps[:, :2, :, :2] == 0).all()
    inner = steps[:, :2, 2:, 2:]
    assert set(np.unique(inner)) == {0, 1}
    np.testing.assert_allclose(inner.mean(axis=(0, 2, 3)), 0.5, atol=0.02)


def test_streak_is_half_a_gaussian():
    x = np.zeros((2, 3, 32, 32), np.float32)
    x[:, :, 20, 20] = 1
    out = _corruptions.streak(x, np.array([0.0, 90.0]), 3, 2.0)
    weights = np.exp(-(np.arange(7) ** 2) / 8)
    expected = np.zeros(32)
    expected[14:21] = weights[::-1] / weights.sum()  # what lies to the right moves left
    np.testing.assert_allclose(out[0, 0, 20], expected, atol=1e-6)
    np.testing.assert_allclose(out[1, 0, :, 20], expected, atol=1e-6)
    np.testing.assert_allclose(out.sum(axis=(2, 3)), 1, atol=1e-5)


def test_zoom_matrix():
    np.testing.assert_allclose(_corruptions.zoom_matrix(32, 1.0), np.eye(32), atol=1e-6)
    a = _corruptions.zoom_matrix(32, 1.25)  # of 26 values 32
    np.testing.assert_allclose(a.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(a @ np.arange(32), np.linspace(3, 28, 32), atol=1e-4)


def test_snow_falls_in_streaks_that_are_turned_once():
    flakes = corrupt(constant(0, n=40), "snow", 1, generator()).astype(int)
    np.testing.assert_array_equal(flakes[:, 0], flakes[:, 1])
    np.testing.assert_array_equal(flakes, flakes[..., ::-1, ::-1])
    across, along = (np.abs(np.diff(flakes, axis=axis)).mean() for axis in (3, 2))
    assert across > 1.2 * along


def test_frost_stand_in_is_like_the_photographs():
    layer = 255 * _corruptions.frost_layer(400, 32, generator())
    colours, contrasts = zip(*_corruptions.FROSTS, strict=True)
    np.testing.assert_allclose(
        layer.mean(axis=(0, 2, 3)), np.mean(colours, axis=0), atol=8
    )
    within = layer[:, 1].std(axis=(1, 2)).mean()
    assert within == pytest.approx(np.mean(contrasts), rel=0.15)

    def correlation(lag):
        pairs = zip(layer[:, 1, :, lag:], layer[:, 1, :, :-lag], strict=True)
        return np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs])

    assert correlation(1) == pytest.approx(0.4, abs=0.1)
    assert correlation(3) == pytest.approx(0.25, abs=0.1)


def test_plasma_fills_the_unit_interval_smoothly():
    smooth, rough = (_corruptions.plasma(50, 32, d, generator()) for d in (3, 1.2))
    for clouds in (smooth, rough):
        np.testing.assert_array_equal(clouds.min(axis=(1, 2)), 0)
        np.testing.assert_array_equal(clouds.max(axis=(1, 2)), 1)
    steps = [np.abs(np.diff(clouds, axis=2)).mean() for clouds in (smooth, rough)]
    assert steps[0] < 0.7 * steps[1]


def test_fog_lowers_the_contrast_and_not_the_peak():
    X = constant(255)
    foggy = corrupt(X, "fog", 4, generator())  # strength 1
    np.testing.assert_array_equal(foggy.max(axis=(1, 2, 3)), 255)
    np.testing.assert_array_equal(foggy.min(axis=(1, 2, 3)), 128)
    black = constant(0)
    np.testing.assert_array_equal(corrupt(black, "fog", 4, generator()), black)


def test_brightness_adds_to_the_value():
    bright = corrupt(constant(100, 40, 0), "brightness", 4, generator())  # 51 more
    np.testing.assert_array_equal(bright[0, :, 0, 0], [151, 60, 0])
    assert (corrupt(constant(0), "brightness", 4, generator()) == 51).all()
    white = corrupt(constant(250, 100, 0), "brightness", 4, generator())
    np.testing.assert_array_equal(white[0, :, 0, 0], [255, 102, 0])


def test_contrast_shrinks_towards_the_mean_of_a_channel():
    X = constant(100)
    X[:, :, :16] = 200
    low = corrupt(X, "contrast", 2, generator())  # half of it
    np.testing.assert_array_equal(low[:, :, :16], 175)
    np.testing.assert_array_equal(low[:, :, 16:], 125)


def test_elastic_transform_without_motion():
    X = photographs().astype(np.float32) / 255
    columns, rows = _corruptions.affine_points(len(X), 32, 0.0, generator())
    for mirror in (False, True):
        out = _corruptions.sample(X, columns, rows, mirror=mirror)
        np.testing.assert_allclose(out, X, atol=1e-5)
        # Beyond the border: about the pixel's centre, or about its edge.
        out = _corruptions.sample(X, columns - 1, rows, mirror=mirror)
        np.testing.assert_allclose(out[..., 1:], X[..., :-1], atol=1e-5)
        left = X[..., 1 if mirror else 0]
        np.testing.assert_allclose(out[..., 0], left, atol=1e-5)


def test_affine_points_are_uniform_about_three_pixels():
    columns, rows = _corruptions.affine_points(400, 32, 2.0, generator())
    for row, column in ((26, 26), (6, 26), (6, 6)):
        moves = columns[:, row, column] - column, rows[:, row, column] - row
        assert np.std(moves) == pytest.approx(2 / math.sqrt(3), rel=0.15)
        assert np.abs(np.mean(moves)) < 0.2


@pytest.mark.parametrize("severity", [2, 4, 5])  # of 32 pixels 28, 24 and 20
def test_blocks_stay_when_each_becomes_whole_pixels(severity):
    blocks = generator().integers(0, 256, (3, 3, 4, 4), dtype=np.uint8)
    X = blocks.repeat(8, axis=2).repeat(8, axis=3)
    np.testing.assert_array_equal(corrupt(X, "pixelate", severity, generator()), X)
    assert (corrupt(X, "pixelate", 1, generator()) != X).any()


def test_jpeg_is_that_of_pillow(tmp_path):
    X = photographs(1)
    file = tmp_path / "image.jpg"
    Image.fromarray(np.moveaxis(X[0], 0, -1).copy()).save(file, quality=40)
    expected = np.moveaxis(np.asarray(Image.open(file)), -1, 0)
    out = corrupt(X, "jpeg_compression", 5, generator())[0]
    np.testing.assert_array_equal(out, expected)


def test_frames():
    X = photographs()
    translated = [*_corruptions.translations(X, None)]
    assert len(translated) == 16
    np.testing.assert_array_equal(translated[7], X)
    np.testing.assert_array_equal(translated[8][..., 1:], X[..., :-1])
    assert (translated[8][..., 0] == 0).all()
    np.testing.assert_array_equal(translated[0][..., :-7], X[..., 7:])
    assert (translated[0][..., -7:] == 0).all()
    rotated = [*_corruptions.rotations(X, None)]
    assert len(rotated) == 31
    np.testing.assert_array_equal(rotated[15], X)
    assert distance(rotated[0], X) > distance(rotated[14], X) > 0
    noisy = [*_corruptions.noises(X, generator())]
    assert len(noisy) == 31
    np.testing.assert_array_equal(noisy[0], X)
    differences = np.stack(noisy[1:]).astype(float) - X
    assert differences.std() == pytest.approx(0.02 * 255, rel=0.05)
    assert (noisy[1] != noisy[2]).any()


def test_strangers():
    X = photographs()
    digits = _corruptions.digits(X, None)
    assert digits.shape == (1797, 3, 32, 32)
    assert digits.dtype == np.uint8
    assert digits.max() == 255
    np.testing.assert_array_equal(digits[:, 0], digits[:, 2])
    noise = _corruptions.uniform_noise(X, generator())
    assert noise.shape == X.shape
    assert noise.dtype == np.uint8
    assert noise.mean() == pytest.approx(127.5, abs=2)


def test_patches_are_shuffled_within_their_image():
    X = photographs()
    mixed = _corruptions.shuffled_patches(X, generator())

    def patches(image):
        corners = [(r, c) for r in range(0, 32, 8) for c in range(0, 32, 8)]
        return sorted(image[:, r : r + 8, c : c + 8].tobytes() for r, c in corners)

    assert mixed.shape == X.shape
    for before, after in zip(X, mixed, strict=True):
        assert (before != after).any()
        assert patches(before) == patches(after)
