"""recipes/reproduce_nano.py: the whole way to a bundle, a few steps each."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import omnialpha
from omnialpha.models.u2net import U2NetP

SCRIPT = Path(__file__).parents[2] / "recipes" / "reproduce_nano.py"
SHORT = [  # validation takes a minute or two a stage
    *("fit.steps=2", "fit.warmup=0", "fit.decay_steps=1", "fit.validate_every=0", "fit.keep_best="),
    *("data.foregrounds=8", "data.backgrounds=4"),
]


@pytest.mark.slow
def test_from_a_finder_to_a_bundle(tmp_path):
    torch.manual_seed(0)
    U2NetP().save(tmp_path / "u2netp", torch.float32)
    command = [sys.executable, SCRIPT, tmp_path / "u2netp", tmp_path / "out", *SHORT]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    # the finder, its pointer, the autoencoder, the text encoder and the transformer
    assert made.stdout.count("other ") == 5, made.stdout
    packaged, card = omnialpha.load().card, omnialpha.load(tmp_path / "out" / "bundle").card
    assert (card.alpha_from_finder, card.reads) == (packaged.alpha_from_finder, packaged.reads)
