"""A small instructor starts in a state from which captions can be learned."""

import torch

from omnialpha.models.text_encoder.tiny import build_tiny_instructor

CAPTIONS = ["draw a red disk on glass", "draw a blue disk on glass"]


def differences(instructor):
    """How far apart two captions are, relative, token by token: the word that differs, then those after it."""
    with torch.no_grad():
        text, _ = instructor(instructor.tokenize(CAPTIONS, [(), ()]))
    apart = (text[0] - text[1]).norm(dim=-1) / text[0].norm(dim=-1)
    first = int((apart > 0).nonzero()[0])
    return apart[first:]


def test_a_word_is_heard_by_itself_and_by_the_words_after_it():
    instructor = build_tiny_instructor(CAPTIONS * 20, text_dim=192, text_layers=3, vision_dim=32, vision_depth=1)
    ours = differences(instructor)
    assert ours[0] > 0.8 and ours[1:].mean() > 0.15
