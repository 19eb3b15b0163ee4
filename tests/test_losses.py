"""stylenb.losses: each term against what it is by definition, on the shipped feature network."""

import pytest
import torch
from diffusers.training_utils import compute_snr

from stylenb import StylenbError, losses, sample_photo, to_tensor
from stylenb.pocket.scenes import draw_scene
from stylenb.pocket.styles import apply_style


@pytest.fixture(scope="module")
def net():
    return losses.load_features("pocket")


@pytest.fixture(scope="module")
def scenes():
    return to_tensor([draw_scene(i).picture for i in (2, 4)])


def styled(style, seeds):
    return to_tensor([apply_style(style, draw_scene(i).picture, i) for i in seeds])


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_estimate_is_exact_and_an_error_of_the_noise_grows_with_the_timestep(tiny):
    x0, noise = random(5, 4, 8, 8), random(5, 4, 8, 8, seed=1)
    t = torch.tensor([0, 100, 400, 700, 999])
    noisy = tiny.scheduler.add_noise(x0, noise, t)
    assert torch.allclose(losses.estimate_x0(tiny.scheduler, noisy, noise, t), x0, atol=1e-4)
    off = losses.estimate_x0(tiny.scheduler, noisy, noise + 0.01, t) - x0
    gain = off.abs().flatten(1).mean(1)[[1, 2, 4]] / 0.01
    assert gain.tolist() == pytest.approx([0.34, 1.16, 14.6], rel=0.02)
    assert torch.allclose(gain**-2, compute_snr(tiny.scheduler, t[[1, 2, 4]]), rtol=1e-3)


def test_noise_loss_is_the_mean_squared_error_of_each(tiny):
    a, b = random(3, 4, 8, 8), random(3, 4, 8, 8, seed=1)
    t = torch.tensor([10, 500, 900])
    plain = losses.noise_loss(a, b, t, tiny.scheduler)
    assert plain.shape == (3,)
    assert plain[1].item() == pytest.approx(torch.nn.functional.mse_loss(a[1], b[1]).item())
    weighted = losses.noise_loss(a, b, t, tiny.scheduler, snr_gamma=5) / plain
    ratio = compute_snr(tiny.scheduler, t)
    assert ratio[0] > 50  # nearly no noise: snr is far above 5
    assert weighted[0].item() == pytest.approx(5 / ratio[0].item())
    assert weighted[1:].tolist() == [1, 1]  # snr below 5 is left alone


@pytest.mark.parametrize("heads", [False, True])
def test_lpips_from_features_is_that_of_the_package(heads, net, scenes):
    import lpips

    if heads:
        net = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    other = to_tensor([sample_photo(n, 128) for n in ("coffee", "chelsea")])
    both = (losses.unit_features(net, pictures) for pictures in (scenes, other))
    found = losses.lpips_from(net, *both)
    assert torch.allclose(found, net(scenes, other).flatten(), rtol=1e-4) and found.min() > 0


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 64, 31, 31), (3, 7, 1, 9)])
def test_a_gram_matrix(shape):
    features = random(*shape)
    matrix = losses.gram(features)
    assert matrix.shape == (shape[0], shape[1], shape[1]) and matrix.dtype == torch.float32
    assert torch.allclose(matrix, matrix.mT, atol=1e-6)
    assert torch.linalg.eigvalsh(matrix.double()).min() > -1e-5
    where = torch.randperm(shape[2] * shape[3], generator=torch.Generator().manual_seed(0))
    shuffled = features.flatten(2)[:, :, where].view(shape)
    assert torch.allclose(losses.gram(shuffled), matrix, atol=1e-5)  # no matter where things are
    assert torch.allclose(losses.gram(3 * features), 9 * matrix, rtol=1e-4, atol=1e-5)
    twice = torch.cat([features, features], dim=3)
    assert torch.allclose(losses.gram(twice), matrix, atol=1e-5)  # nor how large the picture is


def test_a_gram_matrix_of_unit_features_has_trace_one(net, scenes):
    for features in losses.unit_features(net, scenes):
        trace = losses.gram(features).diagonal(dim1=1, dim2=2).sum(1)
        assert torch.allclose(trace, torch.ones(2), atol=1e-3)


def test_a_gram_matrix_in_half_precision_is_taken_in_float32():
    features = random(1, 8, 40, 40).half()
    assert losses.gram(features).dtype == torch.float32
    assert torch.allclose(losses.gram(features), losses.gram(features.float()), atol=1e-6)


def test_the_palette_is_mean_and_covariance_of_the_colours():
    images = torch.tensor([1.0, 0.0, -0.5]).view(1, 3, 1, 1).repeat(1, 1, 16, 16)
    mean, covariance = losses.palette(images)
    assert mean.tolist() == [[1, 0, -0.5]] and not covariance.any()
    images[:, :2, 8:] *= -1
    images[:, 2, 8:] += 0.5  # half of the picture is (1, 0, -0.5), the other half (-1, 0, 0)
    mean, covariance = losses.palette(images)
    assert mean[0].tolist() == pytest.approx([0, 0, -0.25])
    expected = torch.tensor([[1, 0, -0.25], [0, 0, 0], [-0.25, 0, 0.0625]])
    assert torch.allclose(covariance[0], expected)
    fine = torch.ones(1, 3, 16, 16)
    fine[..., ::2] = -1  # stripes of a pixel are a colour
    assert not losses.palette(fine)[1].any()


@pytest.mark.parametrize("style", ["stained_glass", "blueprint", "woodcut"])
def test_the_style_distance_knows_the_style(style):
    looks = losses.PictureLosses(styled(style, range(50, 54)))
    same = looks.style(styled(style, range(20, 23)))
    plain = looks.style(to_tensor([draw_scene(i).picture for i in range(20, 23)]))
    assert same.shape == (3,) and (same >= 0).all()
    assert same.mean() < 0.5 * plain.mean()


def test_only_what_is_beyond_the_usual_counts():
    one, two, other = (styled(style, (50,)) for style in ("comic", "poster", "neon"))
    both = losses.PictureLosses(torch.cat([one, two]))

    def distances(image):
        return both._distances(both._describe(image)).flatten()

    usual = (distances(one) + distances(two)) / 2
    for image in (one, two, other):
        expected = (distances(image) - usual).clamp(min=0).mean()
        assert both.style(image).item() == pytest.approx(expected.item(), abs=1e-5)
    assert both.style(other) > 0 and min(both.style(one), both.style(two)) < usual.mean() / 2


def test_the_style_distance_is_half_palette_half_texture(net, scenes):
    one, other = scenes[:1], scenes[1:]
    (mean, covariance), (found_mean, found_covariance) = map(losses.palette, (one, other))
    variance = covariance.diagonal(dim1=1, dim2=2).sum() + 0.01
    colours = (mean - found_mean).pow(2).sum() / variance
    colours += (covariance - found_covariance).pow(2).sum() / variance**2
    grams = [[losses.gram(f) for f in losses.unit_features(net, x)] for x in (one, other)]
    textures = [(a - b).pow(2).sum() / a.pow(2).sum() for a, b in zip(*grams, strict=True)]
    expected = (colours + sum(textures) / len(textures)) / 2
    looks = losses.PictureLosses(one)
    assert looks.style(other).item() == pytest.approx(expected.item(), rel=1e-3)
    assert looks.style(one).item() < 1e-6


def test_a_style_of_one_flat_colour_has_a_distance():
    flat = torch.full((1, 3, 64, 64), 0.5)
    alike, other = losses.PictureLosses(flat).style(torch.cat([flat, -flat]))
    assert alike < 1e-6 and 10 < other < 1e6


def test_tones_are_where_it_is_light_and_where_dark(scenes):
    found = losses.tones(scenes)
    assert found.shape == scenes.shape and torch.equal(found[:, 0], found[:, 2])
    assert found.mean((1, 2, 3)).abs().max() < 1e-5 and found.std() > 0.1
    tinted = scenes * torch.tensor([0.6, 0.3, 0.6]).view(3, 1, 1) - 0.2  # darker, paler, tinted
    marks = torch.ones_like(scenes)
    marks[..., ::2] = -1  # fine stripes over everything
    for same in (tinted, scenes + 0.3 * marks):
        assert (losses.tones(same) - found).pow(2).mean() < 0.1 * found.pow(2).mean()
    for other in (scenes.flip(-1), -scenes):
        assert (losses.tones(other) - found).pow(2).mean() > 0.3 * found.pow(2).mean()
    assert losses.tones(torch.zeros(1, 3, 64, 64)).isfinite().all()


def test_both_losses_and_gradients(net, scenes):
    looks = losses.PictureLosses(styled("poster", (50, 51)))
    images = scenes.clone().requires_grad_()
    lpips, style = looks(images, scenes.flip(0))
    tones = losses.tones(scenes)
    assert torch.allclose(lpips, net(tones, tones.flip(0)).flatten(), rtol=1e-3)
    assert torch.allclose(style, looks.style(scenes), rtol=1e-3)
    (lpips.sum() + style.sum()).backward()
    assert images.grad.abs().sum() > 0 and images.grad.isfinite().all()
    lpips, _ = looks(scenes, scenes)
    assert lpips.abs().max() < 1e-4  # nothing to change


def test_places_without_any_feature_have_a_gradient(net):
    class Dark(torch.nn.Module):
        scaling_layer = torch.nn.Identity()

        def net(self, images):
            return [images * (images > 0)]

    images = -torch.ones(1, 3, 4, 4)
    images[..., 0] = 0.5
    images.requires_grad_()
    (features,) = losses.unit_features(Dark(), images)
    assert features[0, :, 0, 0].norm().item() == pytest.approx(1) and not features[..., 1:].any()
    features.sum().backward()
    assert images.grad.isfinite().all()


def test_mixed_precision_does_not_reach_the_gram_matrices(scenes):
    looks = losses.PictureLosses(styled("poster", (50, 51)))
    expected = looks(scenes, scenes.flip(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = looks(scenes, scenes.flip(0))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_unknown_features_are_one_sentence():
    with pytest.raises(StylenbError, match="features is one of pocket, squeeze, alex, vgg"):
        losses.load_features("resnet")


def test_features_that_cannot_be_downloaded_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(StylenbError, match="could not be downloaded .* features='pocket'"):
        losses.load_features("squeeze")
