"""The default networks, and the augmentation of batches."""

import pytest
import torch
from helpers import quick

from skbsd import BSDClassifier
from skbsd.augmentation import (
    FlipCrop,
    color_jitter,
    cutout,
    flip_crop,
    resized_crop,
    strong,
)
from skbsd.networks import MLP, ResNet, SmallResNet, SpeedNet, default_network


class Seeing(torch.nn.Linear):
    """Stores its training inputs."""

    def __init__(self):
        super().__init__(64, 10)
        self.seen = []

    def forward(self, x):
        if self.training:
            self.seen.append(x)
        return super().forward(x.flatten(1))


class TestDefaultNetwork:
    @pytest.mark.parametrize("shape", [(5,), (1, 8, 8), (3, 32, 32), (2, 9, 17)])
    def test_shapes(self, shape):
        network = default_network(shape, 7).eval()
        assert network(torch.zeros(2, *shape)).shape == (2, 7)
        assert isinstance(network, MLP if len(shape) == 1 else SmallResNet)

    def test_width_follows_the_size_of_the_image(self):
        assert default_network((1, 8, 8), 2).head.in_features == 64
        assert default_network((1, 32, 32), 2).head.in_features == 128
        assert default_network((1, 8, 8), 2, widths=(4, 6)).head.in_features == 6

    def test_residual_network_halves_the_image_between_blocks(self):
        network = SmallResNet(3, 10)
        out = network.blocks(network.stem(torch.zeros(1, 3, 32, 32)))
        assert out.shape == (1, 128, 8, 8)

    def test_layers(self):
        sizes = [m.weight.shape for m in MLP(4, 3, hidden=(6, 5)).layers[::2]]
        assert sizes == [(6, 4), (5, 6), (3, 5)]
        assert MLP(4, 3, hidden=())(torch.zeros(2, 4)).shape == (2, 3)

    @pytest.mark.parametrize("shape", [(), (4, 4), (1, 2, 3, 4)])
    def test_other_shapes(self, shape):
        with pytest.raises(ValueError, match=r"no default network.*Pass module"):
            default_network(shape, 2)


class TestResNet:
    @pytest.mark.parametrize(("depth", "width"), [(18, 512), (50, 2048)])
    def test_small_images_are_shrunk_three_times(self, depth, width):
        network = ResNet(1, 7, depth=depth).eval()
        sizes = []
        network.body.avgpool.register_forward_hook(
            lambda module, inputs, output: sizes.append(inputs[0].shape)
        )
        assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
        assert sizes == [(2, width, 4, 4)]

    def test_other_depths(self):
        with pytest.raises(ValueError, match=r"one of \(18, 34.*got 20"):
            ResNet(depth=20)


class TestSpeedNet:
    @pytest.mark.parametrize("depth", [2, 3])
    @pytest.mark.parametrize("shape", [(1, 9, 9), (3, 32, 32), (2, 17, 40)])
    def test_shapes(self, shape, depth):
        network = SpeedNet(shape[0], 7, widths=(8, 12, 6), depth=depth)
        out = network(torch.randn(2, *shape))
        assert out.shape == (2, 7)
        out.sum().backward()
        assert all(p.grad is not None for p in network.parameters())

    def test_what_is_frozen_is_no_parameter(self):
        names = {name for name, _ in SpeedNet().named_parameters()}
        assert {n for n in names if "whitening" in n} == {"whitening.bias"}
        assert not [n for n in names if "norms" in n and n.endswith("weight")]
        assert len([n for n in names if n.endswith(".bias")]) == 7

    def test_convolutions_begin_as_partial_identities(self):
        for block in SpeedNet(widths=(30, 40, 20), depth=3).blocks:
            for conv in block.convs:
                n = min(conv.in_channels, conv.out_channels)
                x = torch.randn(1, conv.in_channels, 5, 5)
                torch.testing.assert_close(conv(x)[:, :n], x[:, :n])

    def test_filters_whiten(self):
        generator = torch.Generator().manual_seed(0)
        mix = torch.eye(3) + 0.5
        noise = torch.randn(600, 3, 9, 9, generator=generator)
        x = torch.einsum("cd,ndhw->nchw", mix, noise)
        x = torch.nn.functional.avg_pool2d(x, 2, stride=1).double()
        network = SpeedNet().double()
        network.initialize_from(x)
        out = network.whitening(x).transpose(0, 1).flatten(1)
        moments = out @ out.T / out.shape[1]
        plain = torch.eye(12).double()
        expected = torch.cat([torch.cat([plain, -plain], 1)] * 2)
        expected[12:] *= -1
        torch.testing.assert_close(moments, expected, atol=0.05, rtol=0)
        # Directions without variance are not amplified.
        network.initialize_from(torch.zeros(3, 3, 9, 9).double())
        assert network.whitening.weight.isfinite().all()

    def test_filters_are_the_same_in_each_memory_format(self):
        x = torch.randn(300, 3, 8, 8)
        one, other = SpeedNet(), SpeedNet().to(memory_format=torch.channels_last)
        one.initialize_from(x)
        state = torch.get_rng_state()
        other.initialize_from(x.contiguous(memory_format=torch.channels_last))
        assert torch.equal(torch.get_rng_state(), state)
        torch.testing.assert_close(one.whitening.weight, other.whitening.weight)
        assert other.whitening.weight.is_contiguous(memory_format=torch.channels_last)

    def test_errors(self):
        with pytest.raises(ValueError, match="depth must be 2 or 3, got 4"):
            SpeedNet(depth=4)
        with pytest.raises(ValueError, match=r"at least 9 pixels.*got \(8, 12\)"):
            SpeedNet(1, 2, widths=(4, 4, 4))(torch.zeros(1, 1, 8, 12))


class TestFlipCrop:
    @pytest.fixture
    def images(self):
        generator = torch.Generator().manual_seed(0)
        shape = (400, 2, 6, 7)
        return torch.randint(1, 256, shape, generator=generator, dtype=torch.uint8)

    def test_every_result_is_a_shift_of_the_image_or_its_mirror(self, images):
        out = flip_crop(images, padding=1)
        assert out.dtype == images.dtype
        assert out.shape == images.shape
        padded = torch.nn.functional.pad(images, (1,) * 4)
        candidates = [
            mirrored
            for dy in range(3)
            for dx in range(3)
            for window in [padded[:, :, dy : dy + 6, dx : dx + 7]]
            for mirrored in (window, window.flip(-1))
        ]
        hits = torch.stack([(c == out).flatten(1).all(1) for c in candidates])
        assert (hits.sum(0) == 1).all()  # a draw per sample
        counts = hits.sum(1)
        assert (counts > 5).all()  # about 22 of 400 for each of 18
        assert counts[1::2].sum() == pytest.approx(200, abs=50)

    def test_does_not_write_to_its_input(self, images):
        before = images.clone()
        flip_crop(images)
        assert torch.equal(images, before)

    def test_padding_follows_the_size(self):
        images = torch.ones(200, 1, 32, 32)
        rows = flip_crop(images).sum((1, 3)).eq(0).sum(1)
        assert rows.max() == 4

    def test_floats(self, images):
        out = flip_crop(images.float())
        assert out.dtype == torch.float32

    def test_results_are_those_of_before(self, images):
        torch.manual_seed(3)
        out = flip_crop(images)
        torch.manual_seed(3)
        shift = torch.randint(3, (2, 400, 1))
        mirror = torch.rand(400, 1) < 0.5
        padded = torch.nn.functional.pad(images, (1,) * 4)
        for i in range(0, 400, 40):
            y, x = shift[:, i, 0].tolist()
            window = padded[i, :, y : y + 6, x : x + 7]
            assert torch.equal(out[i], window.flip(-1) if mirror[i] else window)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
    def test_reflected_borders(self, images, dtype):
        images = images.to(dtype)
        torch.manual_seed(3)
        out = flip_crop(images, 2, "reflect")
        torch.manual_seed(3)
        shift = torch.randint(5, (2, 400, 1))
        mirror = torch.rand(400, 1) < 0.5
        padded = torch.nn.functional.pad(images.double(), (2,) * 4, mode="reflect")
        for i in range(400):
            y, x = shift[:, i, 0].tolist()
            window = padded[i, :, y : y + 6, x : x + 7]
            expected = window.flip(-1) if mirror[i] else window
            assert torch.equal(out[i].double(), expected)
        assert out.dtype == dtype

    def test_alternating(self, images):
        augment = FlipCrop(0, alternating=True)
        assert augment.by_row
        rows = torch.arange(400) * 7
        first, second, third = (augment(images, rows, epoch) for epoch in range(3))
        assert torch.equal(second, first.flip(-1))
        assert torch.equal(third, first)
        mirrored = (first != images).flatten(1).any(1)
        assert mirrored.sum() == pytest.approx(200, abs=40)
        # The result depends on the row, not on the position in the batch.
        order = torch.randperm(400)
        again = augment(images[order], rows[order], torch.tensor(4))
        assert torch.equal(again, first[order])

    def test_rows_decide_as_chance_would(self):
        images = torch.tensor([0.0, 1.0]).expand(20_000, 1, 1, 2)
        out = FlipCrop(0, alternating=True)(images, torch.arange(20_000), 0)
        bits = 2 * out[:, 0, 0, 0] - 1
        for lag in range(1, 70):
            assert abs((bits[lag:] * bits[:-lag]).mean()) < 0.03
        assert abs(bits.mean()) < 0.03

    def test_shifts_are_drawn_where_mirroring_alternates(self, images):
        augment = FlipCrop(2, "reflect", alternating=True)
        same = images[:1].expand(400, -1, -1, -1)
        out = augment(same, torch.zeros(400, dtype=torch.int64), 0)
        assert 20 <= len(out.unique(dim=0)) <= 25

    @pytest.mark.parametrize("alternating", [False, True])
    def test_without_rows_it_is_the_function(self, images, alternating):
        augment = FlipCrop(1, "reflect", alternating)
        assert augment.by_row is alternating
        torch.manual_seed(0)
        out = augment(images)
        torch.manual_seed(0)
        assert torch.equal(out, flip_crop(images, 1, "reflect"))

    def test_errors(self, images):
        with pytest.raises(ValueError, match=r"mode must be 'zeros' or.*got 'wrap'"):
            flip_crop(images, mode="wrap")
        with pytest.raises(ValueError, match=r"mode must be 'zeros' or.*got 'wrap'"):
            FlipCrop(mode="wrap")
        with pytest.raises(ValueError, match=r"padding must be.*got -1"):
            FlipCrop(-1)
        with pytest.raises(ValueError, match=r"padding=6 cannot.*expected less than 6"):
            flip_crop(images, 6, "reflect")
        with pytest.raises(ValueError, match=r"epoch must be a number.*got None"):
            FlipCrop(alternating=True)(images, torch.arange(400))

    def test_epochs_alternate_in_a_fit(self, uint8_digits):
        X, y = uint8_digits[0][:60], uint8_digits[1][:60]
        model = quick(
            module=Seeing(),
            augmentation=FlipCrop(0, alternating=True),
            batch_size=-1,
            cuda_graph=False,
        )
        first, second, third = model.fit(X, y).module_.seen
        assert torch.equal(second, first.flip(-1))
        assert torch.equal(third, first)
        assert not torch.equal(first, second)
        # Further calls go on.
        *_, fourth, _, _ = model.partial_fit(X, y).module_.seen
        assert torch.equal(fourth, second)

    def test_in_a_fit_and_in_a_file(self, uint8_digits, tmp_path):
        X, y = uint8_digits[0][:60], uint8_digits[1][:60]
        augment = FlipCrop(1, "reflect", alternating=True)
        model = quick(augmentation=augment, max_epochs=1).fit(X, y)
        model.save(tmp_path / "model.skbsd")
        loaded = BSDClassifier.load(tmp_path / "model.skbsd")
        assert loaded.augmentation == augment


def _images(dtype):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (400, 3, 8, 9), generator=generator)
    return images.to(dtype)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("augment", [resized_crop, color_jitter, cutout, strong])
def test_augmentation_keeps_type_and_shape_and_draws_per_sample(augment, dtype):
    images = _images(dtype)[:1].repeat(50, 1, 1, 1)
    before = images.clone()
    torch.manual_seed(0)
    out = augment(images)
    assert (out.dtype, out.shape) == (images.dtype, images.shape)
    assert torch.equal(images, before)
    assert len(out.unique(dim=0)) > 30
    torch.manual_seed(0)
    assert torch.equal(augment(images), out)


class TestResizedCrop:
    def test_whole_image(self):
        images = _images(torch.uint8)
        assert torch.equal(resized_crop(images, min_area=1.0), images)

    def test_part_is_enlarged(self):
        """A crop of a linear ramp is a ramp over a part of its range."""
        ramp = torch.arange(64.0).expand(500, 1, 64, 64)
        out = resized_crop(ramp, min_area=0.25)
        steps = out[:, 0, 0, 1:-1].diff(dim=1)
        side = steps[:, 10]
        torch.testing.assert_close(
            steps, side[:, None].expand_as(steps), atol=1e-3, rtol=0
        )
        assert side.min() >= 0.5
        assert side.max() <= 1.0
        # The area, not the side, is drawn uniformly.
        assert (side.square() < 0.625).float().mean().item() == pytest.approx(
            0.5, abs=0.1
        )
        assert out.min() >= 0
        assert out.max() <= 63


class TestColorJitter:
    def test_formula(self):
        images = _images(torch.float64)
        torch.manual_seed(0)
        out = color_jitter(images, strength=0.5, grey=0.0)
        torch.manual_seed(0)
        brightness, contrast, saturation = (
            1 + 0.5 * (2 * torch.rand(3, len(images), 1, 1, 1) - 1)
        ).double()
        greys = images.mean(1, keepdim=True)
        x = greys + saturation * (images - greys)
        mean = greys.mean((1, 2, 3), keepdim=True)
        torch.testing.assert_close(out, brightness * (mean + contrast * (x - mean)))

    def test_grey(self):
        images = _images(torch.float32)
        out = color_jitter(images, strength=0.0, grey=0.3)
        is_grey = (out.std(1).amax((1, 2)) < 1e-3).float().mean().item()
        assert is_grey == pytest.approx(0.3, abs=0.08)
        torch.testing.assert_close(color_jitter(images, 0.0, grey=0.0), images)

    def test_stays_in_range(self):
        white = torch.full((50, 3, 4, 4), 250, dtype=torch.uint8)
        assert color_jitter(white).float().mean((1, 2, 3)).max() == 255


class TestCutout:
    def test_covers_a_square_with_the_mean(self):
        images = _images(torch.float64)
        out = cutout(images, share=0.5)
        changed = (out != images).any(1)
        mean = images.mean((2, 3))
        for image, mask, colour in zip(out[:50], changed[:50], mean[:50], strict=True):
            rows, columns = mask.any(1), mask.any(0)
            assert rows.sum() <= 4
            assert columns.sum() <= 4
            assert torch.equal(mask, rows[:, None] & columns)  # without a gap
            assert (image[:, mask] == colour[:, None]).all()
        assert changed.sum((1, 2)).max() == 16
        assert changed[:, 0, 0].any()
        assert changed[:, -1, -1].any()

    def test_nothing(self):
        images = _images(torch.uint8)
        assert torch.equal(cutout(images, share=0.0), images)


class TestSettingsOfFlipCrop:
    @pytest.mark.parametrize("padding", [1.5, True, "2", -1])
    def test_padding(self, padding):
        with pytest.raises(ValueError, match="padding must be a whole number"):
            FlipCrop(padding)
        with pytest.raises(ValueError, match="padding must be a whole number"):
            flip_crop(torch.zeros(2, 1, 8, 8), padding)

    def test_alternating(self):
        with pytest.raises(ValueError, match="alternating must be a bool, got 'yes'"):
            FlipCrop(alternating="yes")

    def test_images_of_a_pixel_have_no_reflection(self):
        with pytest.raises(ValueError, match="cannot be filled with the reflection"):
            flip_crop(torch.zeros(2, 1, 1, 1), mode="reflect")

    def test_tables_and_classes(self, iris):
        with pytest.raises(ValueError, match=r"expected images of shape.*\(128, 4\)"):
            quick(augmentation=FlipCrop()).fit(*iris)
        with pytest.raises(ValueError, match=r"the class FlipCrop; pass FlipCrop\(\)"):
            quick(augmentation=FlipCrop).fit(*iris)
