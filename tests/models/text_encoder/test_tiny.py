"""A small text_encoder starts in a state from which captions can be learned."""

import torch

from omnialpha.models.text_encoder.tiny import build_tiny_text_encoder

CAPTIONS = ["draw a red disk on glass", "draw a blue disk on glass"]


def differences(text_encoder):
    """How far apart two captions are, relative, token by token: the word that differs, then those after it."""
    with torch.no_grad():
        text, _ = text_encoder(text_encoder.tokenize(CAPTIONS, [(), ()]))
    apart = (text[0] - text[1]).norm(dim=-1) / text[0].norm(dim=-1)
    first = int((apart > 0).nonzero()[0])
    return apart[first:]


def test_a_word_is_heard_by_itself_and_by_the_words_after_it():
    text_encoder = build_tiny_text_encoder(CAPTIONS * 20, text_dim=192, text_layers=3, vision_dim=32, vision_depth=1)
    ours = differences(text_encoder)
    assert ours[0] > 0.8 and ours[1:].mean() > 0.15
