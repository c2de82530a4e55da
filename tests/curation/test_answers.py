"""What answers of a vision-language model are taken, and what is said of those that are not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from omnialpha.curation import answers
from omnialpha.curation.prompts import Prompts
from omnialpha.errors import InputError
from omnialpha.evaluation.judge.endpoint import Malformed

GOOD = (
    "Replace the background with a narrow harbour quay at dusk, coiled ropes and crates beside the subject, fishing "
    "boats along the far wall, lantern light from the left and wet cobbles with reflections."
)
MUG = {"subject": "blue mug", "caption": "A chipped blue mug with a white rim and steam above its dark coffee."}


def test_good_answers_are_taken() -> None:
    fenced = f"```json\n{json.dumps(MUG)}\n```"
    assert answers.caption(fenced) == MUG
    assert answers.instruction(json.dumps({"Rewritten": GOOD})) == {"instruction": GOOD}
    said = "On a scratched desk by the window stands a blue mug. Rain runs down the glass behind it."
    assert answers.scene(f'"{said}"\n', ["blue mug"]) == {"scene": said}
    assert answers.background("A scratched desk by a rainy window.", ["blue mug"]) == {
        "background_caption": "A scratched desk by a rainy window."
    }


def caption(said: str) -> str:
    return json.dumps(MUG | {"caption": said})


def rewritten(said: str) -> str:
    return json.dumps({"Rewritten": said})


@pytest.mark.parametrize(
    ("read", "text", "why"),
    [
        (answers.caption, "a blue mug", "no JSON object"),
        (answers.caption, json.dumps({"caption": "A mug."}), "no JSON object with text under subject"),
        (answers.caption, json.dumps(MUG | {"subject": "x y z u v w"}), "not one to three words"),
        (answers.caption, json.dumps(MUG | {"subject": " "}), "subject is empty"),
        (answers.caption, caption("A mug. It is blue."), "2 sentences"),
        (answers.caption, caption("Ein blauer Becher mit Kaffee."), "not English"),
        (answers.caption, caption("一个蓝色的杯子 on a table."), "not English"),
        (answers.caption, caption("A mug " + "with a rim " * 21), "tokens, not fewer than 64"),
        (answers.caption, caption("A blue mug on a white background."), "surroundings: 'background'"),
        (answers.scene, "A mug " + "in the rain " * 20, "62 words, more than 50"),
        (answers.scene, "A mug is here. The sun is low. Birds sing in the tree.", "3 sentences"),
        (lambda t: answers.scene(t, ["blue mug"]), "A desk in the rain.", "does not mention the blue mug"),
        (answers.instruction, GOOD, "no JSON object"),
        (answers.instruction, rewritten("Put it on a quay."), "does not begin with"),
        (answers.instruction, rewritten(GOOD + " It is clean."), "plain background: 'clean'"),
        (answers.instruction, rewritten(GOOD + " In soft light."), "plain background: 'soft light'"),
        (answers.instruction, rewritten(GOOD + " With a black backdrop."), "one colour: 'black backdrop'"),
        (answers.instruction, rewritten(GOOD + " People walk there."), "verb of motion: 'walk'"),
        (answers.instruction, rewritten(GOOD + " They look at it."), "verb of motion: 'look at'"),
        (answers.instruction, rewritten("Replace the background with pens on a desk."), "nothing of the light"),
        (answers.instruction, rewritten("Replace the background with a studio with evening light."), "no things"),
        (lambda t: answers.background(t, ["blue mugs"]), "A desk with a mug.", "mentions the blue mugs"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told(read: Callable[[str], object], text: str, why: str) -> None:
    with pytest.raises(Malformed, match=".") as caught:
        read(text)
    assert why in str(caught.value) and caught.value.said == text


@pytest.mark.parametrize(
    ("text", "subject", "named"),
    [
        ("two cats sleep", "ginger cat", True),
        ("the category is empty", "cat", False),
        ("a mug", "mug of coffee", True),
        ("coffee beans", "mug of coffee", False),
        ("glasses on a table", "glass", True),
    ],
)
def test_a_subject_is_named_by_its_noun(text: str, subject: str, named: bool) -> None:
    assert answers.mentions(text, subject) is named


def test_the_prompts_hold_every_requirement() -> None:
    """The published prompts' demands, by words that only stand there for them."""
    prompts = Prompts.read()
    instruction = prompts.instruction.fill(scene="A mug.")
    for failure in ("minimalist", "clean", "clinical", "white surface", "black backdrop", "soft light"):
        assert f'"{failure}"' in instruction
    for demand in (answers.OPENING, "A mug.", "geometry", "position", "identity", "verb of motion", '"Rewritten"'):
        assert demand in instruction
    assert "64 tokens" in prompts.caption.text and "64 tokens" in prompts.background.text
    assert "never more than 50" in prompts.scene.text and "no cat in it" in prompts.background.fill(subject="cat")


def test_a_file_replaces_prompts(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('[background]\ntext = "Beschreibe das Bild ohne $subject."')
    prompts = Prompts.read(str(own))
    assert prompts.background.fill(subject="cat") == "Beschreibe das Bild ohne cat."
    assert prompts.caption == Prompts.read().caption
    own.write_text('[background]\ntext = "Describe it."')
    with pytest.raises(InputError, match=r"background of .*own.toml lacks \$subject"):
        Prompts.read(str(own))
    own.write_text('[backgrounds]\ntext = "x"')
    with pytest.raises(InputError, match="did you mean 'background'"):
        Prompts.read(str(own))
