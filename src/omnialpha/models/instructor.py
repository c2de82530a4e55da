"""Instruction encoder: Qwen2.5-VL hidden states of an instruction and its condition pictures.

Lengths are in tokens, sizes are (height, width). The wording around an instruction is data (`Template`).
"""

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omnialpha.errors import InputError
from omnialpha.models.vision import patchify_all, speed_up, tower_inputs

PAD = "<|image_pad|>"
RESERVED = ("<|im", "<|vision", "<|video")  # beginnings of the tokens that carry a prompt's structure
CACHED_ROWS = 8192  # tokenised prompts that an instructor remembers


@dataclass(frozen=True)
class Template:
    """Text around an instruction: prefix + one `picture` slot each ({i} counts from 1) + instruction + suffix."""

    prefix: str
    picture: str
    suffix: str
    EDIT: ClassVar["Template"]


# What the released Qwen-Image-Edit-2509 weights were trained with.
Template.EDIT = Template(
    prefix="<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n",
    picture="Picture {i}: <|vision_start|><|image_pad|><|vision_end|>",
    suffix="<|im_end|>\n<|im_start|>assistant\n",
)


@dataclass(frozen=True)
class TokenBatch:
    """Right-padded inputs of `Instructor.encode`; `prefix` leading tokens of each row are the template's."""

    input_ids: Tensor  # (B, L) int64
    attention_mask: Tensor  # (B, L) int64, 1 = real token
    mm_token_type_ids: Tensor  # (B, L) int64, 1 = picture token
    position_ids: Tensor  # (3, B, L) int64: time, row, column
    pixel_values: Tensor | None  # (patches of all pictures, 3 * time * patch * patch) float32
    image_grid_thw: Tensor | None  # (pictures, 3) int64, in patches; always on the CPU, where Python reads it
    prefix: int

    def to(self, device: torch.device | str) -> "TokenBatch":
        """The same batch on `device`."""
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor) and k != "image_grid_thw"}
        moved: dict[str, Any] = {k: v.to(device, non_blocking=True) for k, v in tensors.items()}
        return replace(self, **moved)


class Instructor(nn.Module):
    """Qwen2.5-VL without its language-model head, its tokenizer and the settings of its image processor."""

    def __init__(
        self,
        model: Qwen2_5_VLModel,
        tokenizer: Qwen2Tokenizer,
        processor: Qwen2VLImageProcessorPil,
        template: Template | Mapping[str, str] = Template.EDIT,
        picture_pixels: int = 384 * 384,
        max_tokens: int = 1024,
    ) -> None:
        """`picture_pixels`: area of a condition picture; `max_tokens`: limit of an instruction."""
        super().__init__()
        self.model, self.tokenizer, self.processor = model, tokenizer, processor
        self.template = template if isinstance(template, Template) else Template(**template)
        self.picture_pixels, self.max_tokens = picture_pixels, max_tokens
        self.pad_id: int = model.config.image_token_id
        assert tokenizer.convert_tokens_to_ids(PAD) == self.pad_id, "tokenizer and model disagree about picture tokens"
        tower: Any = model.visual
        assert (tower.patch_size, tower.spatial_merge_size) == (processor.patch_size, processor.merge_size)
        self.prefix = len(self._ids(self.template.prefix))
        self.reserved = [token for token in tokenizer.get_added_vocab() if token.startswith(RESERVED)]
        self._rows: dict[tuple[str, tuple[tuple[int, int], ...]], tuple[Tensor, Tensor]] = {}
        speed_up(tower)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` beside the folder that make an equal instructor; JSON types only."""
        return {"template": asdict(self.template), "picture_pixels": self.picture_pixels, "max_tokens": self.max_tokens}

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _row(self, instruction: str, grids: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
        """Token ids (L,) and positions (L, 3) of one sample; `grids`: (rows, columns) of each picture in tokens."""
        if row := self._rows.get((instruction, grids)):
            return row
        if marker := next((token for token in self.reserved if token in instruction), None):
            raise InputError(f"The instruction contains the reserved marker {marker}; remove it.")
        if (length := len(self._ids(instruction))) > self.max_tokens:
            raise InputError(f"The instruction is {length} tokens long, the limit is {self.max_tokens}; shorten it.")
        slots = "".join(self.template.picture.format(i=i + 1) for i in range(len(grids)))
        areas = iter([h * w for h, w in grids])
        ids: list[int] = []
        for token in self._ids(self.template.prefix + slots + instruction + self.template.suffix):
            ids += [token] * (next(areas) if token == self.pad_id else 1)
        row_ids, merge = torch.tensor([ids]), self.processor.merge_size
        grid = torch.tensor([(1, h * merge, w * merge) for h, w in grids]) if grids else None
        # Explicit token types: without them transformers falls back to one-dimensional positions.
        rope: Any = self.model.get_rope_index
        positions = rope(row_ids, (row_ids == self.pad_id).int(), image_grid_thw=grid)[0]
        if len(self._rows) >= CACHED_ROWS:
            self._rows.clear()
        self._rows[instruction, grids] = row_ids[0], positions[:, 0].T
        return self._rows[instruction, grids]

    def tokenize(self, instructions: Sequence[str], pictures: Sequence[Sequence[Tensor]]) -> TokenBatch:
        """Instructions and the condition pictures (4, H, W) of each sample; patches stay where the pictures are."""
        assert len(instructions) == len(pictures) > 0, "one list of pictures per instruction"
        every = [picture for row in pictures for picture in row]
        patches, grid = patchify_all(every, self.processor, self.picture_pixels)
        merge = self.processor.merge_size
        sizes = iter([] if grid is None else (grid[:, 1:] // merge).tolist())
        grids = [tuple((h, w) for h, w in islice(sizes, len(row))) for row in pictures]
        rows = [self._row(*row) for row in zip(instructions, grids, strict=True)]
        input_ids = pad_sequence([ids for ids, _ in rows], True, int(self.tokenizer.pad_token_id))
        positions = pad_sequence([positions for _, positions in rows], True).permute(2, 0, 1)
        mask = torch.arange(input_ids.shape[1]) < torch.tensor([len(ids) for ids, _ in rows])[:, None]
        kinds = (input_ids == self.pad_id).long()
        return TokenBatch(input_ids, mask.long(), kinds, positions, patches, grid, self.prefix)

    def encode(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Text (B, T, D) after the template's prefix, zero where padded, and its mask (B, T) bool."""
        device = self.model.device
        batch, grid = batch.to(device), batch.image_grid_thw
        pictures: dict[str, Any] = {}
        if grid is not None:
            pictures = {"pixel_values": batch.pixel_values, "image_grid_thw": grid}
            pictures |= tower_inputs(self.model.visual, grid, device)
        # No attention mask: padding is on the right of a causal model, so nothing that counts sees it.
        hidden = self.model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **pictures
        ).last_hidden_state
        mask = batch.attention_mask[:, batch.prefix :].bool()
        return hidden[:, batch.prefix :].masked_fill(~mask[..., None], 0), mask

    def forward(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """`encode`, so that wrappers of modules (DDP, FSDP) see the call."""
        return self.encode(batch)

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Self:
        """Read text_encoder/ (with or without a head), tokenizer/ and processor/; `settings` as in `__init__`."""
        folder = Path(folder)
        if absent := [name for name in ("text_encoder", "tokenizer", "processor") if not (folder / name).is_dir()]:
            raise InputError(f"{folder} has no folder {absent[0]}/; give the folder of a whole model.")
        path = folder / "text_encoder"
        # Through the class with a head, because only that one knows every naming of the weights; the head goes at once.
        loaded: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            path, dtype=dtype, attn_implementation="sdpa", output_loading_info=True, local_files_only=True
        )
        model, missing = loaded[0].model, sorted(loaded[1]["missing_keys"] - {"lm_head.weight"})
        if missing:
            raise InputError(f"{path} lacks {len(missing)} weights, the first is {missing[0]}; download it again.")
        tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        if tokenizer.convert_tokens_to_ids(PAD) != model.config.image_token_id:
            raise InputError(f"{folder / 'tokenizer'} does not belong to the weights beside it; download it again.")
        processor = Qwen2VLImageProcessorPil.from_pretrained(folder / "processor", local_files_only=True)
        return cls(model, tokenizer, processor, **settings)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write what `from_pretrained` reads, weights as `dtype`; `settings` are the caller's to keep."""
        model: Any = self.model
        if dtype not in (None, model.dtype):
            model = copy.deepcopy(model).to(dtype)
        for name, part in (("text_encoder", model), ("tokenizer", self.tokenizer), ("processor", self.processor)):
            new = Path(folder) / f".{name}.new"
            shutil.rmtree(new, ignore_errors=True)
            part.save_pretrained(new)
            shutil.rmtree(new.with_name(name), ignore_errors=True)
            new.rename(new.with_name(name))
