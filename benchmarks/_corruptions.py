"""Images that differ from the training data: corrupted, moved, or of other kinds.

The 15 corruptions are defined as in the authors' `make_cifar_c.py`, with its parameters
for images of 32 x 32 pixels, and the sequences as in their `make_cifar_p.py` (D.
Hendrycks, T. Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions
and Perturbations", ICLR 2019, arXiv:1903.12261; github.com/hendrycks/robustness). They
are implemented here for whole batches where possible:

- The motion of `motion_blur` and `snow` is that of ImageMagick's MotionBlurImage: half
  a Gaussian, along the pixels nearest to the line.
- `glass_blur` reproduces the authors' code rather than its intention: instead of
  swapping two pixels, NumPy copies one over the other.
- `frost_stand_in` replaces `frost`, which blends in photographs.
- Values are rounded to whole levels once, at the end. The authors' code truncates them,
  some of them in between as well; the difference is one level of 255.

Images are uint8 (n, 3, 32, 32). Within this file they are float32 in [0, 1]. The
arguments of each corruption are the images, a generator (unused by some) and its
parameters.
"""

import io
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import correlate, correlate1d, gaussian_filter, zoom
from sklearn.datasets import load_digits
from torch.nn import functional as F

GRAY = np.array([0.299, 0.587, 0.114], np.float32)[:, None, None]
# Mean colour and standard deviation within a crop of the photographs that the authors'
# code draws from, at a fifth of their size as in that code. Two are equal.
FROSTS = (
    ((76, 148, 165), 14),
    ((198, 202, 211), 18),
    ((198, 202, 211), 18),
    ((143, 158, 170), 26),
    ((102, 113, 125), 34),
)


def to_floats(images):
    return images.astype(np.float32) / 255


def to_pixels(x):
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)


def gaussian_noise(x, rng, scale):
    return x + scale * rng.standard_normal(x.shape, np.float32)


def shot_noise(x, rng, photons):
    return rng.poisson(photons * x) / np.float32(photons)


def impulse_noise(x, rng, share):
    """Set single values, not whole pixels, to 0 or 1 with equal probability."""
    draw = rng.random(x.shape, np.float32)
    return np.where(draw < share, (draw < share / 2).astype(np.float32), x)


def disk(radius: float, blur: float) -> np.ndarray:
    """Return the weights of a disk, blurred by a Gaussian on 3 x 3 pixels."""
    reach = np.arange(-3, 4)
    weights = (reach[:, None] ** 2 + reach**2 <= radius**2).astype(np.float64)
    gaussian = np.exp(-(np.arange(-1, 2) ** 2) / (2 * blur**2))
    for axis in (0, 1):
        weights = correlate1d(weights, gaussian, axis)
    return weights / weights.sum()


def defocus_blur(x, rng, radius, blur):
    return correlate(x, disk(radius, blur)[None, None], mode="mirror")


def glass_blur(x, rng, sigma, times):
    """Blur, replace most pixels by a neighbour above or to the left, blur again."""
    around = (0, 0, sigma, sigma)
    x = gaussian_filter(x, around, mode="nearest")
    n, channels, height, width = x.shape
    for _ in range(times):
        up, left = rng.integers(0, 2, (2, n, height, width))
        for move in (up, left):
            move[:, :2] = move[:, :, :2] = 0
        rows = np.arange(height)[:, None] - up
        index = (rows * width + np.arange(width) - left).reshape(n, 1, -1)
        x = np.take_along_axis(x.reshape(n, channels, -1), index, axis=2)
        x = x.reshape(n, channels, height, width)
    return gaussian_filter(x, around, mode="nearest")


def streak(x, angles, radius: int, sigma: float) -> np.ndarray:
    """Blur each image along its angle, in degrees clockwise from the right.

    Weights are half a Gaussian over 2 `radius` + 1 pixels; the border is repeated.
    """
    taps = np.arange(2 * radius + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2)).astype(np.float32)
    weights /= weights.sum()
    turn = np.deg2rad(angles)[:, None]
    right, down = (
        np.ceil(taps * f(turn) - 0.5).astype(int) + 2 * radius for f in (np.cos, np.sin)
    )
    height, width = x.shape[-2:]
    rows, columns = (
        np.clip(np.arange(-2 * radius, size + 2 * radius), 0, size - 1)
        for size in (height, width)
    )
    out = np.zeros_like(x)
    for i, image in enumerate(x):
        padded = image[..., rows[:, None], columns]
        for weight, c, r in zip(weights, right[i], down[i], strict=True):
            out[i] += weight * padded[..., r : r + height, c : c + width]
    return out


def motion_blur(x, rng, radius, sigma):
    return streak(x, rng.uniform(-45, 45, len(x)), radius, sigma)


def zoom_matrix(size: int, factor: float) -> np.ndarray:
    """Return the matrix A that magnifies the middle of a column of `size` values.

    It interpolates linearly; an image is magnified by ``A @ x @ A.T``.
    """
    kept = int(np.ceil(size / factor))
    first = (size - kept) // 2
    rows = np.eye(size, dtype=np.float32)[first : first + kept]
    large = zoom(rows, (factor, 1), order=1)
    first = (len(large) - size) // 2
    return large[first : first + size]


def zoom_blur(x, rng, stop):
    factors = np.arange(1, stop, 0.01)
    out = x.copy()
    for factor in factors:
        a = zoom_matrix(x.shape[-1], factor)
        out += a @ (x @ a.T)
    return out / np.float32(len(factors) + 1)


def snow(x, rng, mean, scale, factor, threshold, radius, sigma, share):
    """Add falling flakes, once unchanged and once rotated by 180 degrees."""
    n, _, height, width = x.shape
    flakes = mean + scale * rng.standard_normal((n, height, width), np.float32)
    a = zoom_matrix(height, factor)
    flakes = a @ (flakes @ a.T)
    flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
    flakes = streak(flakes, rng.uniform(-135, -45, n), radius, sigma)[:, None]
    gray = (GRAY * x).sum(axis=1, keepdims=True)
    x = share * x + (1 - share) * np.maximum(x, 1.5 * gray + 0.5)
    return x + flakes + flakes[..., ::-1, ::-1]


def frost_layer(n: int, size: int, rng) -> np.ndarray:
    """Return textures (n, 3, size, size): grains and patches of grains, bluish white.

    Mean colour, contrast and the correlation of neighbours (0.4, and 0.25 over two to
    four pixels) are close to those of the photographs, but crystals are missing.
    """
    parts = 0.0
    for share, sigma in ((0.7, 0.4), (0.3, 4.0)):
        part = rng.standard_normal((n, size, size), np.float32)
        part = gaussian_filter(part, (0, sigma, sigma), mode="wrap")
        parts += np.float32(share**0.5) * part / part.std()
    colours, contrasts = map(np.array, zip(*FROSTS, strict=True))
    kind = rng.integers(len(FROSTS), size=n)
    layer = colours[kind][:, :, None, None] + (
        contrasts[kind][:, None, None, None] * parts[:, None]
    )
    return np.clip(layer / 255, 0, 1).astype(np.float32)


def frost_stand_in(x, rng, share, strength):
    return share * x + strength * frost_layer(len(x), x.shape[-1], rng)


def plasma(n: int, size: int, decay: float, rng) -> np.ndarray:
    """Return fractal clouds (n, size, size) in [0, 1], by the diamond-square algorithm.

    Each step halves the distance of the points. A new point is the mean of the four
    around it plus a uniform random number; the edges are periodic. The amplitude of
    that number is divided by `decay` squared, as the authors apply `decay` twice.
    """
    grid = np.zeros((n, size, size))
    step, amplitude = size, 100.0**2

    def middle(*around):
        noise = rng.uniform(-amplitude, amplitude, around[0].shape)
        return sum(around) / 4 + noise

    while step > 1:
        half = step // 2
        corner = grid[:, ::step, ::step]
        right, below = np.roll(corner, -1, axis=2), np.roll(corner, -1, axis=1)
        centre = middle(corner, right, below, np.roll(right, -1, axis=1))
        above, left = np.roll(centre, 1, axis=1), np.roll(centre, 1, axis=2)
        grid[:, half::step, half::step] = centre
        grid[:, ::step, half::step] = middle(corner, right, above, centre)
        grid[:, half::step, ::step] = middle(corner, below, left, centre)
        step, amplitude = half, amplitude / decay**2
    grid -= grid.min(axis=(1, 2), keepdims=True)
    grid /= grid.max(axis=(1, 2), keepdims=True)
    return grid.astype(np.float32)


def fog(x, rng, strength, decay):
    clouds = plasma(len(x), x.shape[-1], decay, rng)[:, None]
    peak = x.max(axis=(1, 2, 3), keepdims=True)
    return (x + strength * clouds) * peak / (peak + strength)


def brightness(x, rng, more):
    """Add to the value in the HSV colour space, which scales all channels."""
    value = x.max(axis=1, keepdims=True)
    brighter = np.minimum(value + more, 1)
    scale = brighter / np.where(value > 0, value, 1)
    return np.where(value > 0, x * scale, brighter)


def contrast(x, rng, share):
    mean = x.mean(axis=(2, 3), keepdims=True)
    return mean + share * (x - mean)


def sample(x, columns, rows, *, mirror: bool) -> np.ndarray:
    """Interpolate images linearly at points (n, height, width).

    Beyond the border they are reflected: about the centres of the outermost pixels if
    `mirror`, else about their edges.
    """
    height, width = x.shape[-2:]
    points = [
        2 * at / (size - 1) - 1 if mirror else (2 * at + 1) / size - 1
        for at, size in ((columns, width), (rows, height))
    ]
    grid = torch.from_numpy(np.stack(points, axis=-1).astype(np.float32))
    return F.grid_sample(
        torch.from_numpy(x), grid, padding_mode="reflection", align_corners=mirror
    ).numpy()


def affine_points(n: int, size: int, shift: float, rng):
    """Return the columns and rows that a random affine map takes to each pixel.

    The map moves three points, at least half the image apart, by up to `shift` pixels.
    """
    middle, arm = size // 2, size // 3
    fixed = middle + arm * np.array([[1.0, 1], [1, -1], [-1, -1]])
    moved = fixed + rng.uniform(-shift, shift, (n, 3, 2))
    ones = np.ones((n, 3, 1))
    back = np.linalg.solve(np.concatenate([moved, ones], axis=2), fixed)
    rows, columns = np.mgrid[:size, :size]
    pixels = np.stack([columns, rows, np.ones_like(rows)], axis=-1)
    return np.moveaxis(pixels.reshape(-1, 3) @ back, 2, 0).reshape(2, n, size, size)


def elastic_transform(x, rng, strength, sigma, shift):
    """Map affinely, then move each pixel by a smooth random field."""
    n, _, height, width = x.shape
    x = sample(x, *affine_points(n, height, shift, rng), mirror=True)
    field = rng.uniform(-1, 1, (2, n, height, width))
    field = gaussian_filter(field, (0, 0, sigma, sigma), mode="reflect", truncate=3)
    rows, columns = np.mgrid[:height, :width]
    right, down = strength * field
    return sample(x, columns + right, rows + down, mirror=False)


def each(images, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """Apply a function of Pillow images to each uint8 image."""
    out = np.empty_like(images)
    for image, result in zip(images, out, strict=True):
        given = Image.fromarray(np.ascontiguousarray(np.moveaxis(image, 0, -1)))
        result[:] = np.moveaxis(np.asarray(change(given)), -1, 0)
    return out


def pixelate(x, rng, share):
    def change(image):
        small = image.resize([int(share * s) for s in image.size], Image.Resampling.BOX)
        return small.resize(image.size, Image.Resampling.BOX)

    return to_floats(each(to_pixels(x), change))


def jpeg_compression(x, rng, quality):
    def change(image):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return to_floats(each(to_pixels(x), change))


# The parameters of the severities from 1 to 5. Those of elastic_transform are in
# pixels, which are 32 times the authors' values.
CORRUPTIONS: dict[str, tuple[Callable[..., np.ndarray], list[tuple]]] = {
    "gaussian_noise": (gaussian_noise, [(0.04,), (0.06,), (0.08,), (0.09,), (0.1,)]),
    "shot_noise": (shot_noise, [(500,), (250,), (100,), (75,), (50,)]),
    "impulse_noise": (impulse_noise, [(0.01,), (0.02,), (0.03,), (0.05,), (0.07,)]),
    "defocus_blur": (
        defocus_blur,
        [(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
    ),
    "glass_blur": (glass_blur, [(0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2)]),
    "motion_blur": (motion_blur, [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)]),
    "zoom_blur": (zoom_blur, [(1.06,), (1.11,), (1.16,), (1.21,), (1.26,)]),
    "snow": (
        snow,
        [
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ],
    ),
    "frost_stand_in": (
        frost_stand_in,
        [(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
    ),
    "fog": (fog, [(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)]),
    "brightness": (brightness, [(0.05,), (0.1,), (0.15,), (0.2,), (0.3,)]),
    "contrast": (contrast, [(0.75,), (0.5,), (0.4,), (0.3,), (0.15,)]),
    "elastic_transform": (
        elastic_transform,
        [
            (0, 0, 2.56),
            (1.6, 6.4, 2.24),
            (2.56, 1.92, 1.92),
            (3.2, 1.28, 1.6),
            (3.2, 0.96, 0.96),
        ],
    ),
    "pixelate": (pixelate, [(0.95,), (0.9,), (0.85,), (0.75,), (0.65,)]),
    "jpeg_compression": (jpeg_compression, [(80,), (65,), (58,), (50,), (40,)]),
}
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(images, name: str, severity: int, rng) -> np.ndarray:
    """Corrupt images.

    Parameters
    ----------
    images : ndarray of shape (n, 3, size, size)
        Images of uint8; fog needs a power of two as the size.
    name : str
        A key of `CORRUPTIONS`.
    severity : int
        From 1 to 5.
    rng : numpy.random.Generator
        Source of all random numbers.

    Returns
    -------
    ndarray of shape (n, 3, size, size)
        Corrupted images of uint8.
    """
    function, parameters = CORRUPTIONS[name]
    return to_pixels(function(to_floats(images), rng, *parameters[severity - 1]))


def translations(images, rng) -> Iterator[np.ndarray]:
    """Yield 16 frames, shifted from -7 to 8 pixels to the right and filled by black."""
    width = images.shape[-1]
    for shift in range(-7, 9):
        frame = np.zeros_like(images)
        to, of = max(shift, 0), max(-shift, 0)
        frame[..., to : width - of] = images[..., of : width - to]
        yield frame


def rotations(images, rng) -> Iterator[np.ndarray]:
    """Yield 31 frames, rotated from -15 to 15 degrees and filled by black."""
    for angle in range(-15, 16):
        yield each(
            images, lambda image, by=angle: image.rotate(by, Image.Resampling.BILINEAR)
        )


def noises(images, rng) -> Iterator[np.ndarray]:
    """Yield the images, and 30 frames with independent Gaussian noise."""
    yield images
    x = to_floats(images)
    for _ in range(30):
        yield to_pixels(gaussian_noise(x, rng, 0.02))


def digits(images, rng) -> np.ndarray:
    """Return scikit-learn's 1,797 digits, in grey and resized to the images' size."""
    small = torch.from_numpy(load_digits().images / 16)[:, None]
    large = F.interpolate(small, images.shape[-2:], mode="bilinear").numpy()
    return to_pixels(np.repeat(large, 3, axis=1))


def shuffled_patches(images, rng) -> np.ndarray:
    """Cut each image into 4 x 4 patches, and shuffle these."""
    n, channels, height, width = images.shape
    patches = images.reshape(n, channels, 4, height // 4, 4, width // 4)
    patches = patches.transpose(0, 2, 4, 1, 3, 5).reshape(n, 16, -1)
    order = rng.permuted(np.tile(np.arange(16), (n, 1)), axis=1)
    mixed = np.take_along_axis(patches, order[:, :, None], axis=1)
    mixed = mixed.reshape(n, 4, 4, channels, height // 4, width // 4)
    return mixed.transpose(0, 3, 1, 4, 2, 5).reshape(images.shape)


def uniform_noise(images, rng) -> np.ndarray:
    """Return as many images of uniform random values."""
    return rng.integers(0, 256, images.shape, np.uint8)
