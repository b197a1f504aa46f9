import json

import pytest
import torch

from tapstudy_training.captioned import (
    BACKGROUNDS,
    CaptionedImages,
    Emoji,
    caption,
    emoji_classes,
    load_emoji,
    renderings,
    words_of,
)
from tapstudy_training.tasks import word_tokenizer
from tests.table import each_row
from tests.training.emoji import shapes, write_archive, write_packages


def test_captions_say_what_is_there():
    nurse = Emoji("nurse", "noto", "medium-dark")
    whole = caption(nurse, background="teal", position="top left")
    assert whole == "nurse medium-dark skin tone noto small top left on a teal background"
    assert caption(nurse, background=None, style=False) == "nurse medium-dark skin tone"
    assert caption(Emoji("red apple", "noto"), background="red") == "red apple noto on a red background"


def test_pictures_are_composited_by_alpha():
    """A half-transparent emoji over a background is the mean of both; a whole one hides it."""
    images = torch.zeros(1, 4, 8, 8, dtype=torch.uint8)
    images[0, 0], images[0, 3, :, :4], images[0, 3, :, 4:] = 255, 51, 255
    found = (CaptionedImages(images, (Emoji("x", "noto"),)).pictures([0], ["blue"]) + 1) * 127.5
    red, blue = torch.tensor([255.0, 0, 0]), torch.tensor(BACKGROUNDS["blue"]).float()
    assert torch.allclose(found[0, :, 3, 1], 0.2 * red + 0.8 * blue, atol=1e-3)
    assert torch.allclose(found[0, :, 3, 6], red, atol=1e-3)


@each_row(
    ("position", "rows", "columns"),
    [("top left", (0, 32), (0, 32)), ("bottom right", (32, 64), (32, 64)), ("top right", (0, 32), (32, 64))],
)
def test_small_emoji_stand_in_their_corner(position, rows, columns):
    images = shapes()
    found = images.pictures([1], ["white"], [position])
    coloured = (found[0] < 0.99).any(dim=0).nonzero()
    assert rows[0] <= coloured[:, 0].min() <= coloured[:, 0].max() < rows[1]
    assert columns[0] <= coloured[:, 1].min() <= coloured[:, 1].max() < columns[1]
    assert len(coloured) == 16 * 16


def test_draws_follow_the_seed_and_the_weights():
    """Captions name the emoji that is there, flags come less often, and the same generator draws the same."""
    images = shapes()
    pictures, captions = images.draw(1500, torch.Generator().manual_seed(1))
    again, same = images.draw(1500, torch.Generator().manual_seed(1))
    assert torch.equal(pictures, again)
    assert captions == same
    share = {word: sum(word in text for text in captions) / 1500 for word in ("flag", "family", "apple", "small")}
    total = 10 + 0.3 + 0.5
    assert share["flag"] == pytest.approx(0.3 / total, abs=0.01)
    assert share["family"] == pytest.approx(0.5 / total, abs=0.015)
    assert share["apple"] == pytest.approx(1 / total, abs=0.02)
    assert share["small"] == pytest.approx(1 / 7, abs=0.02)
    assert sum("background" in text for text in captions) / 1500 == pytest.approx(0.9, abs=0.02)
    for i, text in enumerate(captions):
        said = [background for background in BACKGROUNDS if f"on a {background} background" in text]
        for name in said:
            corner = pictures[i, :, 0, 0]
            assert torch.allclose(corner, torch.tensor(BACKGROUNDS[name]) / 127.5 - 1, atol=1e-3)


def test_every_caption_fits_the_tokenizer():
    long = Emoji("one two three four five six seven", "noto", "medium-dark")
    images = CaptionedImages(torch.zeros(1, 4, 8, 8, dtype=torch.uint8), (long,))
    tokenizer = word_tokenizer(words_of(images.emoji), 16)
    _, captions = images.draw(200, torch.Generator().manual_seed(0))
    ids = tokenizer(captions).input_ids
    assert max(map(len, ids)) <= 16
    assert all(row[-1] == tokenizer.eos_token_id for row in ids)
    assert not any(tokenizer.unk_token_id in row for row in ids)


def test_archive_and_parts(tmp_path):
    images = shapes()
    write_archive(tmp_path, images)
    found = load_emoji(tmp_path)
    assert found.emoji == images.emoji
    assert torch.equal(found.images, images.images)
    assert [one.name for one in found.part(held_out=True).emoji] == ["cook"]
    assert len(found.part(held_out=False)) == 11


def test_public_packages(tmp_path):
    """Every emoji with an image, its tones named, couples of two tones left out, held-out combinations marked."""
    write_packages(tmp_path)
    found = load_emoji(tmp_path)
    assert len(found) == 2 * 7
    assert [one.words for one in found.emoji[:3]] == [
        "red apple",
        "raised back of hand",
        "raised back of hand light skin tone",
    ]
    assert [one.tone for one in found.emoji if one.held_out] == ["medium-dark", "medium-dark"]
    assert found.images[7, 0, 0, 0] == 1


def test_renderings_carry_the_class_of_name_and_tone():
    images = shapes()
    found = renderings(images, each=2, seed=0)
    classes = emoji_classes(images.emoji)
    assert len(found) == 24
    assert len(classes) == 10
    assert found.images.shape[1:] == (3, 32, 32)
    assert found.labels[:12].tolist() == [classes[one.name, one.tone] for one in images.emoji]
    assert not torch.equal(found.images[:12], found.images[12:])


def test_what_is_missing_or_damaged_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no emoji in .*npm install --prefix"):
        load_emoji(tmp_path)
    write_archive(tmp_path, shapes())
    entries = json.loads((tmp_path / "captions.json").read_text())
    (tmp_path / "captions.json").write_text(json.dumps(entries[1:]))
    with pytest.raises(ValueError, match="12 images and 11 captions"):
        load_emoji(tmp_path)
    (tmp_path / "captions.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load_emoji(tmp_path)
    with pytest.raises(ValueError, match="one description per image"):
        CaptionedImages(shapes().images, shapes().emoji[1:])
