"""Data sets: the embedded digits, readers of MNIST, CIFAR and SMS spam files, and a corpus made by rule."""

from sparring.data.assets import assets_folder, find_asset
from sparring.data.digits import load_digits, sample_picture
from sparring.data.idx import load_cifar_npz, load_mnist, read_idx
from sparring.data.sms import generate_corpus, load_sms, split_corpus

__all__ = [
    "assets_folder",
    "find_asset",
    "generate_corpus",
    "load_cifar_npz",
    "load_digits",
    "load_mnist",
    "load_sms",
    "read_idx",
    "sample_picture",
    "split_corpus",
]
