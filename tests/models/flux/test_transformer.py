"""FLUX's parts against diffusers': the transformer, the two text encoders, the files, and the names in LoRA files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxPosEmbed
from safetensors.torch import load_file, save_file
from torch import Tensor

from flux import TEXT_DIM, TRANSFORMER, WORDS
from omnialpha.errors import InputError
from omnialpha.models.checkpoints.checking import check
from omnialpha.models.checkpoints.folders import Parts, resolve
from omnialpha.models.flux import transformer as flux
from omnialpha.models.flux.text_encoder import FluxText
from omnialpha.models.flux.transformer import FluxTransformer
from omnialpha.models.lora import adapters
from omnialpha.models.lora.files import Factors, write
from omnialpha.models.lora.names import unfused
from omnialpha.models.runtime.model_sizes import ModelSizes
from omnialpha.models.transformer.positions import Layout, Positions
from omnialpha.models.vae.alphavae import load_vae
from released import write_vae

AXES, TOKENS = tuple(TRANSFORMER["axes_dims_rope"]), 5  # tokens of a text


@pytest.fixture(scope="module")
def transformer(flux_folder: Path) -> FluxTransformer:
    return FluxTransformer.from_pretrained(flux_folder / "transformer", torch_dtype=torch.float32)


@pytest.fixture(scope="module")
def text(flux_folder: Path) -> FluxText:
    return FluxText.from_pretrained(flux_folder).eval()


def inputs(sizes: list[tuple[int, int]]) -> tuple[dict[str, Tensor], Positions]:
    """Random arguments for pictures of these sizes in tokens, and their positions."""
    generator = torch.Generator().manual_seed(3)
    layouts = [Layout((size,)) for size in sizes]
    rows, batch = max(layout.target_tokens for layout in layouts), len(sizes)
    shapes = {"targets": (batch, rows, 64), "text": (batch, TOKENS, TEXT_DIM), "pooled": (batch, 24)}
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    made |= {"t": torch.rand(batch, generator=generator), "guidance": torch.linspace(1.5, 4, batch)}
    made["inputs"] = torch.zeros(batch, 0, 64)
    return made, flux.positions(layouts, [TOKENS] * batch, "released", AXES)


def published(model: Any, given: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
    return model(
        hidden_states=given["targets"],
        timestep=given["t"],
        guidance=given["guidance"],
        pooled_projections=given["pooled"],
        encoder_hidden_states=given["text"],
        txt_ids=torch.zeros(TOKENS, 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(1, *size, "cpu", torch.float32),
        return_dict=False,
    )[0]


# ---- the transformer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(3, 3), (2, 7)])
def test_transformer_equals_diffusers(transformer: FluxTransformer, flux_folder: Path, size: tuple[int, int]) -> None:
    theirs: Any = FluxTransformer2DModel.from_pretrained(flux_folder / "transformer", torch_dtype=torch.float32)
    given, positions = inputs([size, size])
    wanted = published(theirs, given, size)
    assert (transformer(positions=positions, **given) - wanted).abs().max() <= 1e-5
    for name in ("guidance", "pooled", "text", "t"):
        other = transformer(positions=positions, **given | {name: given[name].flip(0)})
        assert (other - wanted).abs().max() > 1e-3, f"{name} is not heard"


def test_positions_are_the_published_ones() -> None:
    """And far from the origin, where float32 angles would be off."""
    size = (2, 300)
    ids = FluxPipeline._prepare_latent_image_ids(1, *size, "cpu", torch.float32)
    cos, sin = FluxPosEmbed(theta=10000, axes_dim=list(AXES))(ids)
    made = flux.positions([Layout((size,))], [TOKENS], "released", AXES)
    assert torch.equal(made.image_cos[0], cos[:, ::2]) and torch.equal(made.image_sin[0], sin[:, ::2])
    assert (made.text_cos == 1).all() and (made.text_sin == 0).all() and made.target_mask is None


def test_sizes_share_a_batch(transformer: FluxTransformer) -> None:
    sizes = [(3, 4), (2, 3)]
    given, positions = inputs(sizes)
    together = transformer(positions=positions, **given)
    for row, size in enumerate(sizes):
        count = size[0] * size[1]
        own = {name: value[row : row + 1] for name, value in given.items()}
        own["targets"] = own["targets"][:, :count]
        alone = transformer(positions=inputs([size])[1], **own)
        assert (together[row, :count] - alone[0]).abs().max() <= 1e-5


def test_checkpointing_changes_no_gradient(transformer: FluxTransformer) -> None:
    given, positions = inputs([(2, 3)])
    gradients = []
    for on in (False, True):
        (transformer.enable_gradient_checkpointing if on else transformer.disable_gradient_checkpointing)()
        targets = given["targets"].clone().requires_grad_(True)
        transformer(positions=positions, **given | {"targets": targets}).square().sum().backward()
        gradients.append(targets.grad)
    transformer.disable_gradient_checkpointing()
    transformer.zero_grad()
    assert torch.equal(*gradients) and gradients[0].abs().max() > 0


def test_guidance_that_nobody_says_is_one(transformer: FluxTransformer) -> None:
    given, positions = inputs([(2, 2)])
    told = transformer(positions=positions, **given | {"guidance": torch.ones(1)})
    assert torch.equal(transformer(positions=positions, **given | {"guidance": None}), told)


# ---- the text --------------------------------------------------------------------------------------------------------


def test_text_equals_diffusers(text: FluxText, flux_folder: Path) -> None:
    pipeline: Any = FluxPipeline.from_pretrained(flux_folder, torch_dtype=torch.float32, vae=None, transformer=None)
    prompts = [WORDS[1], " ".join(WORDS * 5), ""]  # CLIP cuts the second one
    with torch.no_grad():  # attention that keeps gradients has other kernels, 2e-4 apart
        wanted, pooled, _ = pipeline.encode_prompt(prompts)
        tokens, mask, vectors = text(text.tokenize(prompts, [[]] * 3))
    assert tokens.shape == (3, 512, TEXT_DIM) and mask.all()
    assert (tokens - wanted).abs().max() <= 1e-5 and (vectors - pooled).abs().max() <= 1e-5
    assert (vectors[0] - vectors[2]).abs().max() > 0.1 and (tokens[0] - tokens[2]).abs().max() > 0.1


def test_negatives_are_the_same_as_alone(text: FluxText) -> None:
    positive, negative = text(text.tokenize(WORDS[:2], [[], []], negatives=["", ""]))
    for pair, prompts in ((positive, WORDS[:2]), (negative, ["", ""])):
        alone = text(text.tokenize(prompts, [[], []]))
        assert all(
            torch.allclose(one.float(), other.float(), atol=1e-5) for one, other in zip(pair, alone, strict=True)
        )


def test_long_prompt_is_refused(flux_folder: Path) -> None:
    short = FluxText.from_pretrained(flux_folder, max_tokens=8)
    with pytest.raises(InputError, match=r"\d+ tokens long, the limit is 8; shorten"):
        short.tokenize([WORDS[1]], [[]])
    assert short(short.tokenize([""], [[]]))[0].shape == (1, 8, TEXT_DIM)


def test_text_encoders_are_saved(text: FluxText, tmp_path: Path) -> None:
    text.save_pretrained(tmp_path, torch.float32)
    again = FluxText.from_pretrained(tmp_path).eval()
    batch = text.tokenize(WORDS[:1], [[]])
    assert torch.equal(again.tokenize(WORDS[:1], [[]]).clip, batch.clip)
    assert all(torch.equal(one, other) for one, other in zip(again(batch), text(batch), strict=True))


# ---- the files -------------------------------------------------------------------------------------------------------


def test_whole_folder_is_accepted_and_measured(flux_folder: Path, transformer: FluxTransformer, text: FluxText) -> None:
    parts = resolve(flux_folder)
    check(parts)
    vae = load_vae(parts.vae, widen=True)
    sizes = ModelSizes.read(parts)
    for weights, module in ((sizes.transformer, transformer), (sizes.text, text), (sizes.vae, vae)):
        assert weights.total == sum(parameter.numel() for parameter in module.parameters())
    assert (sizes.layers, sizes.width, sizes.context, sizes.side) == (5, 32, TEXT_DIM, 16)


def _vae_of_qwen(parts: Parts, folder: Path) -> Parts:
    return replace(parts, vae=write_vae(folder / "vae"))


def _other_width(parts: Parts, folder: Path) -> Parts:
    target = shutil.copytree(parts.transformer, folder / "transformer")
    wider = FluxTransformer2DModel(**TRANSFORMER | {"pooled_projection_dim": 32})
    wider.save_pretrained(target)
    return replace(parts, transformer=target)


def _lacking(parts: Parts, folder: Path) -> Parts:
    target = shutil.copytree(parts.text, folder / "all")
    file = target / "text_encoder" / "model.safetensors"
    state = load_file(file)
    state.pop("text_model.final_layer_norm.bias")
    save_file(state, file)
    return replace(parts, text=target)


def _no_tokenizer(parts: Parts, folder: Path) -> Parts:
    target = shutil.copytree(parts.text, folder / "all")
    (target / "tokenizer_2" / "tokenizer.json").unlink()
    return replace(parts, text=target)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_vae_of_qwen, ("AutoencoderKLQwenImage", "use one of AutoencoderKL")),
        (_other_width, ("takes 32 channels", "text_encoder gives 24")),
        (_lacking, ("text_encoder lacks 1 of", "final_layer_norm.bias")),
        (_no_tokenizer, ("tokenizer_2 holds no tokenizer.json",)),
    ],
    ids=["vae of Qwen", "other width", "lacking weight", "no tokenizer"],
)
def test_refuses_parts(flux_folder: Path, tmp_path: Path, spoil: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        check(spoil(resolve(flux_folder), tmp_path))
    assert all(word in str(caught.value) for word in words), caught.value


def test_card_of_the_folder(flux_folder: Path, tmp_path: Path) -> None:
    card = resolve(flux_folder).card
    assert (card.family, card.guidance, card.native_size, card.max_tokens) == ("flux", "embedded", (1024, 1024), 512)
    assert (card.shift.mu(256), card.shift.mu(4096), card.shift.terminal) == (0.5, 1.15, 0.0)
    assert card.defaults("text_to_image").guidance == 3.5
    plain = shutil.copytree(flux_folder, tmp_path / "plain")
    config = plain / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"guidance_embeds": False}))
    card = resolve(plain).card
    assert card.guidance == "negative" and card.defaults("text_to_image").guidance == 1.0


# ---- LoRA ------------------------------------------------------------------------------------------------------------

OWN = {  # of FLUX's own modules: those of diffusers, by rows
    "double_blocks.1.img_attn.qkv": ["transformer_blocks.1.attn." + part for part in ("to_q", "to_k", "to_v")],
    "double_blocks.0.txt_attn.proj": ["transformer_blocks.0.attn.to_add_out"],
    "double_blocks.1.txt_mlp.0": ["transformer_blocks.1.ff_context.net.0.proj"],
    "double_blocks.0.img_mod.lin": ["transformer_blocks.0.norm1.linear"],
    "single_blocks.2.linear1": [
        "single_transformer_blocks.2." + part for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ],
    "single_blocks.0.linear2": ["single_transformer_blocks.0.proj_out"],
}


def shapes_of(model: FluxTransformer) -> dict[str, tuple[int, int]]:
    linears = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return {name: (module.out_features, module.in_features) for name, module in linears.items()}


def own_lora(model: FluxTransformer, flat: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A LoRA under FLUX's own names, as kohya (flat) or with dots, and the changes of diffusers' weights it means."""
    generator, state, changes = torch.Generator().manual_seed(0), {}, {}
    shapes = shapes_of(model)
    for name, modules in OWN.items():
        out, rank, alpha = [shapes[module][0] for module in modules], 3, 6.0
        down = torch.randn(rank, shapes[modules[0]][1], generator=generator)
        up = torch.randn(sum(out), rank, generator=generator)
        key = "lora_unet_" + name.replace(".", "_") if flat else "diffusion_model." + name
        ends = (".lora_down.weight", ".lora_up.weight") if flat else (".lora_A.weight", ".lora_B.weight")
        state |= {key + ends[0]: down, key + ends[1]: up, key + ".alpha": torch.tensor(alpha)}
        changes |= dict(zip(modules, (alpha / rank * up @ down).split(out), strict=True))
    return state, changes


@pytest.mark.parametrize("flat", [True, False], ids=["kohya", "dotted"])
def test_own_names_are_divided(transformer: FluxTransformer, flat: bool) -> None:
    state, changes = own_lora(transformer, flat)
    made = unfused(state, shapes_of(transformer))
    assert {key.removesuffix(".alpha") for key in made if key.endswith(".alpha")} == set(changes)
    for module, change in changes.items():
        down, up, alpha = (made[module + end] for end in (".lora_down.weight", ".lora_up.weight", ".alpha"))
        assert torch.allclose(alpha / len(down) * up @ down, change, atol=1e-6)


def test_names_of_nobody_stay(transformer: FluxTransformer) -> None:
    down = {"lora_unet_double_blocks_7_img_attn_qkv.lora_down.weight": torch.zeros(2, 32)}  # there are two blocks
    assert list(unfused(down, shapes_of(transformer))) == list(down)
    short = {"lora_unet_single_blocks_0_linear1.lora_up.weight": torch.zeros(9, 2)}
    assert list(unfused(short, shapes_of(transformer))) == list(short)


@pytest.mark.parametrize("flat", [True, False], ids=["kohya", "dotted"])
def test_own_names_are_applied(flux_folder: Path, tmp_path: Path, flat: bool) -> None:
    folder = flux_folder / "transformer"
    model, base = (FluxTransformer.from_pretrained(folder, torch_dtype=torch.float32) for _ in range(2))
    state, changes = own_lora(base, flat)
    save_file(state, tmp_path / "own.safetensors")
    adapters.apply(model, [adapters.AdapterFile(tmp_path / "own.safetensors")])
    with torch.no_grad():
        for module, change in changes.items():
            base.get_submodule(module).weight += change
    given, positions = inputs([(2, 3)])
    wanted = base(positions=positions, **given)
    assert (model(positions=positions, **given) - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("names", ["diffusers", "kohya"])
def test_diffusers_names_are_applied(
    transformer: FluxTransformer, flux_folder: Path, tmp_path: Path, names: str
) -> None:
    """Of both kinds of blocks; with diffusers' names as diffusers applies them."""
    shapes = shapes_of(transformer)
    modules = (
        "transformer_blocks.1.attn.to_out.0",
        "single_transformer_blocks.0.attn.to_q",
        "transformer_blocks.0.ff.net.2",
    )
    generator = torch.Generator().manual_seed(1)
    factors = {
        name: Factors(*(torch.randn(s, generator=generator) for s in ((2, shapes[name][1]), (shapes[name][0], 2))), 2.0)
        for name in modules
    }
    path = tmp_path / "x.safetensors"
    if names == "diffusers":
        write(path, factors, {})
    else:
        state = {}
        for name, own in factors.items():
            parts = {"lora_down.weight": own.down, "lora_up.weight": own.up, "alpha": torch.tensor(own.alpha)}
            state |= {f"lora_unet_{name.replace('.', '_')}.{end}": part for end, part in parts.items()}
        save_file(state, path)
    model = FluxTransformer.from_pretrained(flux_folder / "transformer", torch_dtype=torch.float32)
    adapters.apply(model, [adapters.AdapterFile(path)])
    theirs: Any = FluxTransformer2DModel.from_pretrained(flux_folder / "transformer", torch_dtype=torch.float32)
    if names == "diffusers":
        theirs.load_lora_adapter(load_file(path))
    else:
        for name, own in factors.items():
            theirs.get_submodule(name).weight.data += own.up @ own.down
    given, positions = inputs([(2, 3)])
    wanted = published(theirs, given, (2, 3))
    assert (model(positions=positions, **given) - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert (transformer(positions=positions, **given) - wanted).abs().max() > 0.1
