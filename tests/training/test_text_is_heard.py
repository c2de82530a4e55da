"""A model made from nothing learns what a word means: four colours, one shape, some minutes."""

import json
import tomllib
from pathlib import Path

import pytest
import torch

from omnialpha import config, rgba
from omnialpha.models.checkpoints.folders import BUNDLED, Card
from omnialpha.models.text_encoder.tiny import build_tiny_text_encoder
from omnialpha.models.transformer.model import MultiImageTransformer
from omnialpha.models.vae.alphavae import AlphaVAE
from omnialpha.pipeline import OmniAlpha
from omnialpha.tasks import TASKS
from omnialpha.training.sft import FlowLoss, draw_times, flow_losses, initialize

COLORS = {"red": (1.0, 0.0, 0.0), "blue": (0.0, 0.0, 1.0), "green": (0.0, 0.7, 0.0), "yellow": (1.0, 1.0, 0.0)}
SIDE, BATCH, STEPS = 96, 16, 220
RECIPE = tomllib.loads((Path(__file__).parents[2] / "recipes" / "nano-sft.toml").read_text())


def disk(color, generator):
    """A disk of one colour, about in the middle, (4, SIDE, SIDE)."""
    line = torch.arange(float(SIDE)) - SIDE / 2
    x = line - torch.randint(-16, 17, (1,), generator=generator)
    alpha = ((line[:, None] ** 2 + x[None] ** 2) < (SIDE / 4) ** 2).float()
    return torch.cat([torch.tensor(COLORS[color]).view(3, 1, 1) * alpha, alpha[None]])


def request(color):
    return TASKS["text_to_image"].example(prompt=f"a {color} disk", size=(SIDE, SIDE))


@pytest.mark.slow
def test_colours_follow_the_words():
    torch.manual_seed(0)
    card = config.build(Card, json.loads((BUNDLED["nano"] / "omnialpha.json").read_text()))
    text_encoder = build_tiny_text_encoder([request(c).instruction for c in COLORS] * 20, **RECIPE["text_encoder"])
    transformer = MultiImageTransformer(**RECIPE["transformer"])
    initialize(transformer)
    model = OmniAlpha(AlphaVAE.load(BUNDLED["nano"] / "vae").requires_grad_(False), transformer, text_encoder, card)
    generator, names = torch.Generator().manual_seed(0), list(COLORS)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.99))
    for _ in range(STEPS):
        colors = [names[i] for i in torch.randint(len(names), (BATCH,), generator=generator).tolist()]
        cond = model.condition([request(c) for c in colors])
        x0 = model.encode_targets([[disk(c, generator)] for c in colors], cond)
        t = draw_times(FlowLoss("logit_normal", 0.5, 1.2), BATCH, generator)
        noise = torch.randn(x0.shape, generator=generator)
        velocity = model.velocity(torch.lerp(x0, noise, t.view(-1, 1, 1)), t, cond)
        flow_losses(velocity, noise - x0, t.square() / t.clamp_min(0.05), None).mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    made = torch.stack(
        [stack[0].rgba for stack in model.eval().run([request(c) for c in names], steps=4, guidance=1.0)]
    )
    means = rgba.premultiply(made)[:, :3].sum(dim=(2, 3)) / made[:, 3].sum(dim=(1, 2))[:, None]
    nearest = torch.cdist(means, torch.tensor(list(COLORS.values()))).argmin(dim=1)
    assert nearest.tolist() == list(range(len(names))), means
