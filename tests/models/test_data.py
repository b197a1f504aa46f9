import numpy as np
import pytest
import torch

from tapstudy.models.data import ImageSet, _from_hub, load_images


def save(folder, **arrays):
    np.savez(folder / "mnist_test.npz", **arrays)


def test_reads_a_folder(tmp_path):
    pixels = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    save(tmp_path, images=pixels, labels=np.array([3, 4], np.uint8))
    images, labels = load_images("mnist", "test", tmp_path).batch(torch.tensor([1]))
    assert labels.tolist() == [4]
    np.testing.assert_allclose(images[0, 0].numpy(), pixels[1] / 127.5 - 1, rtol=1e-6)


def test_missing_and_damaged_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image set at .*mnist_test.npz.*leave the folder out"):
        load_images("mnist", "test", tmp_path)
    save(tmp_path, images=np.zeros((1, 4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"arrays \['labels'\] are missing"):
        load_images("mnist", "test", tmp_path)
    save(tmp_path, images=np.zeros((1, 4, 4)), labels=np.zeros(1))
    with pytest.raises(ValueError, match="images must be uint8"):
        load_images("mnist", "test", tmp_path)
    with pytest.raises(ValueError, match="one label per image"):
        ImageSet(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))


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
