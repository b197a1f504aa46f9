from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from tapstudy.models.data import LabelledImages, _from_hub, load_images


def save(folder, **arrays):
    np.savez(folder / "mnist_test.npz", **arrays)


def test_reads_a_folder(tmp_path):
    pixels = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    save(tmp_path, images=pixels, labels=np.array([3, 4], np.uint8))
    images, labels = load_images("mnist", "test", tmp_path).batch(torch.tensor([1]))
    assert labels.tolist() == [4]
    np.testing.assert_allclose(images[0, 0].numpy(), pixels[1] / 127.5 - 1, rtol=1e-6)


def test_unknown_missing_and_damaged_sets(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image set at .*mnist_test.npz.*leave the folder out"):
        load_images("mnist", "test", tmp_path)
    save(tmp_path, images=np.zeros((1, 4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"arrays \['labels'\] are missing"):
        load_images("mnist", "test", tmp_path)
    save(tmp_path, images=np.zeros((1, 4, 4)), labels=np.zeros(1))
    with pytest.raises(ValueError, match="images must be uint8"):
        load_images("mnist", "test", tmp_path)
    with pytest.raises(ValueError, match="one label per image"):
        LabelledImages(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="no image set 'svhn' with labels: the known ones are mnist, cifar10"):
        load_images("svhn", "test", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no image set at .*cifar10_train.npz.*cifar10_train_jpeg.npz"):
        load_images("cifar10", "train", tmp_path)


def test_hub_loader_on_a_local_repository(tmp_path, monkeypatch):
    """The code that fetches the set, on a two-image repository on disk."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pixels = np.arange(2 * 28 * 28, dtype=np.uint32).reshape(2, 28, 28).astype(np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    table = datasets.Dataset.from_dict({"image": list(pixels), "label": [7, 2]}, features=features)
    (tmp_path / "data").mkdir()
    table.to_parquet(tmp_path / "data" / "train-00000.parquet")
    found = _from_hub("mnist", "train", str(tmp_path))
    assert found.labels.tolist() == [7, 2]
    np.testing.assert_array_equal(found.images[:, 0].numpy(), pixels)


def test_no_network_says_what_to_do(monkeypatch, tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(ConnectionError, match=r"could not fetch .*pass a folder that holds mnist_train.npz"):
        _from_hub("mnist", "train", str(tmp_path / "absent"))


def jpeg_set(folder, images, *, split="test", **changed):
    """An image set coded as JPEG, in the layout of the folder of training data."""
    files = []
    for image in images:
        file = BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0)
        files.append(np.frombuffer(file.getvalue(), np.uint8))
    offsets = np.cumsum([0, *(len(file) for file in files)])
    arrays = {"jpeg": np.concatenate(files), "offsets": offsets, "labels": np.arange(len(images), dtype=np.uint8) % 10}
    np.savez(folder / f"cifar10_{split}_jpeg.npz", **{**arrays, **changed})


def test_reads_jpeg_coded_images(tmp_path):
    """Smooth colours survive the coding to within a few grey levels, in the order of bands and axes."""
    y, x = np.mgrid[:32, :32]
    images = np.stack([np.stack([7 * y, 7 * x, 7 * (31 - y)], -1), np.stack([7 * x, 7 * x, 0 * x], -1)]).astype(
        np.uint8
    )
    jpeg_set(tmp_path, images)
    found = load_images("cifar10", "test", tmp_path)
    assert found.images.shape == (2, 3, 32, 32)
    assert found.labels.tolist() == [0, 1]
    assert np.abs(found.images.permute(0, 2, 3, 1).numpy().astype(int) - images).max() <= 12
    moved = found.to("cpu").batch(torch.tensor([1]))[0]
    assert moved.shape == (1, 3, 32, 32)


def test_damaged_jpeg_names_the_image(tmp_path):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    jpeg_set(tmp_path, images, jpeg=np.zeros(10_000, np.uint8))
    with pytest.raises(ValueError, match=r"cifar10_test_jpeg.npz: image 0 is no JPEG file"):
        load_images("cifar10", "test", tmp_path)
    np.savez(tmp_path / "cifar10_test_jpeg.npz", jpeg=np.zeros(1, np.uint8))
    with pytest.raises(ValueError, match=r"arrays \['labels', 'offsets'\] are missing"):
        load_images("cifar10", "test", tmp_path)
