"""`evaluate_retrieval`: which rows hold the same image and caption, and what is left out."""

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, Image

from starft_hf import evaluate_retrieval, evaluate_zero_shot
from starft_hf.evaluation import RetrievalResult
from starft_hf.evaluation.results import RECALLS, result_from_dict
from tests.support.tiny import captioned


def naive(model, processor, dataset):
    """The recalls, by every row by itself and a matrix of all pairs; images and captions are the same if equal."""
    images, texts, pairs = {}, {}, set()
    for row in dataset:
        image = images.setdefault(row["image"].tobytes(), (len(images), row["image"]))[0]
        for caption in [row["caption"]] if isinstance(row["caption"], str) else row["caption"]:
            pairs.add((image, texts.setdefault(caption, len(texts))))
    with torch.no_grad():
        pixels = processor.image_processor([image for _, image in images.values()], return_tensors="pt")
        embeds = model.get_image_features(pixel_values=pixels["pixel_values"].to(model.dtype)).pooler_output
        tokens = processor.tokenizer(list(texts), padding=True, truncation=True, max_length=16, return_tensors="pt")
        captions = model.get_text_features(**tokens).pooler_output
    similarities = F.normalize(embeds, dim=-1) @ F.normalize(captions, dim=-1).T
    found = {}
    for way, matrix, own in (
        ("image_to_text", similarities, pairs),
        ("text_to_image", similarities.T, {pair[::-1] for pair in pairs}),
    ):
        ranks = []
        for query, row in enumerate(matrix):
            right = torch.tensor([(query, candidate) in own for candidate in range(len(row))])
            ranks.append(1 + int((row[~right] >= row[right].max() - 1e-12).sum()))
        found |= {f"{way}_recall_at_{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10)}
    return RetrievalResult(**found, images=len(images), captions=len(texts))


@pytest.fixture
def model(clip):
    return clip.double()


def split_up(dataset):
    """The same with a row for every caption, the images of which repeat."""
    rows = [(row["image"], caption) for row in dataset for caption in row["caption"]]
    return dataset.select([0] * len(rows)).map(
        lambda row, index: {"image": rows[index][0], "caption": [rows[index][1]]}, with_indices=True
    )


@pytest.mark.parametrize("batch_size", [5, 64])
def test_it_is_its_definition(model, processor, batch_size):
    dataset = captioned(23)
    found = evaluate_retrieval(model, processor, dataset, batch_size=batch_size, progress=False)
    assert found == naive(model, processor, dataset)
    assert (found.images, found.captions) == (23, len({text for row in dataset["caption"] for text in row}))
    assert len(set(found.metrics().values())) > 4
    assert found.mean_recall == pytest.approx(sum(getattr(found, name) for name in RECALLS) / 6)
    assert result_from_dict(found.as_dict()) == found


def test_it_does_not_matter_how_captions_are_divided_among_rows(model, processor):
    dataset = captioned(12)
    expected = evaluate_retrieval(model, processor, dataset, progress=False)
    rows = split_up(dataset)
    assert len(rows) > 12
    assert evaluate_retrieval(model, processor, rows.shuffle(seed=1), progress=False, batch_size=4) == expected
    assert evaluate_retrieval(model, processor, list(rows), progress=False, num_workers=2) == expected


def test_captions_that_the_text_tower_reads_alike_tie(model, processor):
    """Cut at 16 tokens, or in another case, they have the same tokens, and no one knows which is whose."""
    long = "the photo of a owl under the blue sky in the photo of a truck "
    texts = ["a owl", "A owl", f"{long}fern", f"{long}violin", "a fern"]
    dataset = captioned(5).remove_columns("caption").add_column("caption", texts)
    assert len({tuple(tokens[:16]) for tokens in processor.tokenizer(texts)["input_ids"]}) == 3
    found = evaluate_retrieval(model, processor, dataset, progress=False)
    assert found == naive(model, processor, dataset)
    assert found.captions == 5
    # Only the fern is not tied with a caption of another image.
    assert found.image_to_text_recall_at_1 <= 0.2


def test_bad_images_are_left_out_with_their_captions(model, processor):
    dataset = captioned(8)
    expected = evaluate_retrieval(model, processor, dataset.select(range(1, 8)), progress=False)
    rows = dataset.cast_column("image", Image(decode=False)).to_list()
    rows[0]["image"] = {"bytes": b"no image", "path": None}
    damaged = Dataset.from_list(rows, features=dataset.features)
    with pytest.raises(ValueError, match="row 0"):
        evaluate_retrieval(model, processor, damaged, progress=False)
    found = evaluate_retrieval(model, processor, damaged, on_bad_image="skip", progress=False)
    assert (found.skipped, found.metrics()["skipped_images"]) == (1, 1)
    assert result_from_dict({**found.as_dict(), "skipped": 0}) == expected
    with pytest.raises(ValueError, match=r"has no rows \(1 were skipped"):
        evaluate_retrieval(model, processor, damaged.select([0]), on_bad_image="skip", progress=False)


def without_caption(row, index):
    return {"caption": [""] if index == 4 else row["caption"]}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (lambda rows: rows.remove_columns("caption"), "no column 'caption'.*Set caption_column"),
        (lambda rows: rows.remove_columns("image"), "no column 'image'"),
        (lambda rows: rows.map(without_caption, with_indices=True), "row 4: column 'caption' has no caption"),
        (lambda rows: rows.map(lambda row: {"caption": []}), "row 0: column 'caption' has no caption"),
        (lambda rows: rows.remove_columns("caption").add_column("caption", range(6)), "row 0.*is not a caption"),
        (lambda rows: rows.select([]), "is empty"),
        (lambda rows: {"test": rows}, "pass one of its datasets"),
        (lambda rows: rows.to_iterable_dataset(), "iterable dataset"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_a_model_is_loaded(changed, reason):
    with pytest.raises(ValueError, match=reason):
        evaluate_retrieval("./nowhere", None, changed(captioned(6)), progress=False)


def test_labels_are_classified_and_captions_need_their_column_named(model, processor):
    dataset = captioned(6)
    with pytest.raises(ValueError, match="no column 'label'"):
        evaluate_zero_shot(model, processor, dataset, progress=False)
    renamed = dataset.rename_column("caption", "sentences")
    found = evaluate_retrieval(model, processor, renamed, caption_column="sentences", progress=False)
    assert found == evaluate_retrieval(model, processor, dataset, progress=False)


def test_images_are_cached_as_the_model_gets_them(model, processor, tmp_path):
    dataset = captioned(9)
    expected = evaluate_retrieval(model, processor, dataset, progress=False)
    for _ in range(2):
        found = evaluate_retrieval(model, processor, dataset, image_cache=str(tmp_path / "cache"), progress=False)
        assert found == expected
    assert list((tmp_path / "cache").rglob("*.*"))
