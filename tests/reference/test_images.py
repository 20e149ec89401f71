import pytest
import torch

from starft_hf.models.encoder import DualEncoder
from starft_hf.reference.images import CachedImages
from starft_hf.reference.live import FrozenReference
from starft_hf.utils.store import FeaturePieces, FeatureStore
from tests.support.tiny import images_of


CPU = torch.device("cpu")


@pytest.fixture
def encoder(clip, processor):
    return DualEncoder.of(clip, processor)


def cached(clip, encoder, dataset, folder, **settings):
    images = CachedImages(images_of(dataset, encoder), FeatureStore(folder), progress=False, **settings)
    live = FrozenReference(clip, encoder)
    images.prepare(live, CPU)
    return images, live.forwards


def recomputed(clip, processor, dataset, samples):
    originals = [dataset[int(sample)]["image"] for sample in samples]
    pixels = processor.image_processor(images=originals, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        embeds = clip.get_image_features(pixels.to(clip.dtype)).pooler_output
    return embeds / embeds.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (7, 0), (64, 2)])
def test_features_are_those_of_the_model_whatever_the_order(
    clip, encoder, processor, dataset, tmp_path, batch_size, num_workers
):
    clip = clip.double()
    images, _ = cached(clip, encoder, dataset, tmp_path, batch_size=batch_size, num_workers=num_workers)
    samples = torch.tensor([5, 0, 23, 5, 11])
    torch.testing.assert_close(images.rows(samples), recomputed(clip, processor, dataset, samples), rtol=0, atol=1e-12)


def test_a_second_run_computes_nothing(clip, encoder, dataset, tmp_path):
    first, forwards = cached(clip, encoder, dataset, tmp_path, batch_size=10)
    assert forwards == 3
    second, forwards = cached(clip, encoder, dataset, tmp_path, batch_size=5)
    assert forwards == 0
    assert torch.equal(first.rows(torch.arange(24)), second.rows(torch.arange(24)))
    assert second.size == (24, 24 * 32 * 4)
    assert first.file == second.file
    assert second.file.is_file()


def test_half_precision_halves_the_file_within_its_documented_error(clip, encoder, dataset, tmp_path):
    whole, _ = cached(clip, encoder, dataset, tmp_path)
    half, _ = cached(clip, encoder, dataset, tmp_path, dtype=torch.float16)
    samples = torch.arange(24)
    assert half.size[1] == whole.size[1] // 2
    assert half.rows(samples).dtype == torch.float32
    error = (half.rows(samples) - whole.rows(samples)).abs().max()
    assert 0 < error <= 2**-12


def test_rows_are_as_wide_as_the_losses(clip, encoder, dataset, tmp_path):
    clip = clip.double()
    for dtype in (None, torch.float16, torch.float32):
        images, _ = cached(clip, encoder, dataset, tmp_path, dtype=dtype)
        assert images.rows(torch.arange(2)).dtype == torch.float64


def test_under_autocast_features_are_as_exact_as_ever(clip, encoder, dataset, tmp_path):
    with torch.autocast("cpu", torch.bfloat16):
        images, _ = cached(clip, encoder, dataset, tmp_path / "cast")
    expected, _ = cached(clip, encoder, dataset, tmp_path / "plain")
    assert torch.equal(images.rows(torch.arange(24)), expected.rows(torch.arange(24)))


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 5, 9])
def test_an_interrupted_build_resumes_and_gives_the_very_same_features(
    clip, encoder, dataset, tmp_path, monkeypatch, stop_at
):
    """At the cost of the batches since the last piece."""
    monkeypatch.setattr(FeaturePieces, "size", 6)
    whole, _ = cached(clip, encoder, dataset, tmp_path / "whole", batch_size=2)
    embed, calls = FrozenReference.embed_images, []

    def stopping(self, batch):
        calls.append(1)
        if len(calls) == stop_at:
            raise StoppedError
        return embed(self, batch)

    monkeypatch.setattr(FrozenReference, "embed_images", stopping)
    with pytest.raises(StoppedError):
        cached(clip, encoder, dataset, tmp_path / "cut", batch_size=2)
    kept = len(list((tmp_path / "cut").glob("*")))
    assert kept == (stop_at - 1) // 3
    resumed, forwards = cached(clip, encoder, dataset, tmp_path / "cut", batch_size=2)
    assert forwards == 12 - 3 * kept
    assert torch.equal(resumed.all_rows(), whole.all_rows())
    assert [path.name for path in (tmp_path / "cut").iterdir()] == [resumed.file.name]


def test_damaged_pieces_are_computed_again(clip, encoder, dataset, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(FeaturePieces, "size", 6)
    whole, _ = cached(clip, encoder, dataset, tmp_path / "whole", batch_size=2)
    monkeypatch.setattr(FeaturePieces, "remove", lambda self: None)
    cached(clip, encoder, dataset, tmp_path / "cut", batch_size=2)
    [final] = [path for path in (tmp_path / "cut").iterdir() if "piece" not in path.name]
    final.unlink()
    pieces = sorted(path for path in (tmp_path / "cut").iterdir())
    assert len(pieces) == 4
    content = bytearray(pieces[1].read_bytes())
    content[-1] ^= 1
    pieces[1].write_bytes(content)
    resumed, forwards = cached(clip, encoder, dataset, tmp_path / "cut", batch_size=2)
    assert forwards == 9
    assert "its checksum is wrong" in caplog.text
    assert torch.equal(resumed.all_rows(), whole.all_rows())
