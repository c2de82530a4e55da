"""Instruction encoder: Qwen2.5-VL hidden states of an instruction and its condition pictures."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from omnialpha.errors import InputError
from omnialpha.files import atomic_folder
from omnialpha.models.runtime.offload import Streams
from omnialpha.models.text_encoder.vision import patchify_all, speed_up, tower_inputs

PAD = "<|image_pad|>"
RESERVED = ("<|im", "<|vision", "<|video")  # beginnings of the tokens that carry a prompt's structure
SHARED, POSITIVE, NEGATIVE = range(3)
CACHED_ROWS = 8192  # tokenised prompts that a text encoder remembers


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
    """Right-padded inputs of a TextEncoder; the first `prefix` tokens of a prompt are the template's.

    With negative prompts a row is [what both prompts begin with, rest of the positive one, rest of the negative one].
    """

    input_ids: Tensor  # (B, L) int64
    attention_mask: Tensor  # (B, L) int64, 1 = real token
    mm_token_type_ids: Tensor  # (B, L) int64, 1 = picture token
    position_ids: Tensor  # (3, B, L) int64: time, row, column
    pixel_values: Tensor | None  # (patches of all pictures, 3 * time * patch * patch) float32
    image_grid_thw: Tensor | None  # (pictures, 3) int64, in patches; always on the CPU, where Python reads it
    prefix: int
    branches: Tensor | None = None  # (B, L) int64 of a row of two prompts: SHARED, POSITIVE, NEGATIVE; -1 padding

    def to(self, device: torch.device | str) -> "TokenBatch":
        """The same batch on `device`."""
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor) and k != "image_grid_thw"}
        moved: dict[str, Any] = {k: v.to(device, non_blocking=True) for k, v in tensors.items()}
        return replace(self, **moved)


class TextEncoder(nn.Module):
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
        """`picture_pixels`: area of a condition picture, 0 for its own; `max_tokens`: limit of an instruction."""
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
    def streams(self) -> Streams:
        """The patch embedding has the first weights: they say where the text model computes."""
        text, tower = self.model.language_model, self.model.visual
        return Streams((tower, text), (tower.patch_embed,), text.embed_tokens)  # type: ignore[arg-type]

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

    def tokenize(
        self,
        instructions: Sequence[str],
        pictures: Sequence[Sequence[Tensor]],
        negatives: Sequence[str] | None = None,
    ) -> TokenBatch:
        """Instructions and the condition pictures (4, H, W) of each sample; patches stay where the pictures are.

        With `negatives`, one a sample, the batch holds two prompts a row.
        """
        assert len(instructions) == len(pictures) > 0, "one list of pictures per instruction"
        every = [picture for row in pictures for picture in row]
        patches, grid = patchify_all(every, self.processor, self.picture_pixels)
        merge = self.processor.merge_size
        sizes = iter([] if grid is None else (grid[:, 1:] // merge).tolist())
        grids = [tuple((h, w) for h, w in islice(sizes, len(row))) for row in pictures]
        rows, branches = [self._row(*row) for row in zip(instructions, grids, strict=True)], None
        if negatives is not None:
            others = [self._row(*row) for row in zip(negatives, grids, strict=True)]
            joined = [_join(*pair) for pair in zip(rows, others, strict=True)]
            rows, branches = [row for row, _ in joined], pad_sequence([branch for _, branch in joined], True, -1)
        input_ids = pad_sequence([ids for ids, _ in rows], True, int(self.tokenizer.pad_token_id))
        positions = pad_sequence([positions for _, positions in rows], True).permute(2, 0, 1)
        mask = torch.arange(input_ids.shape[1]) < torch.tensor([len(ids) for ids, _ in rows])[:, None]
        kinds = (input_ids == self.pad_id).long()
        return TokenBatch(input_ids, mask.long(), kinds, positions, patches, grid, self.prefix, branches)

    def forward(self, batch: TokenBatch) -> Any:
        """Encode a batch.

        Returns:
            Text (B, T, D) after the template's prefix, zero where padded, and its mask (B, T) bool. Of a batch with
            negatives two such pairs: what both prompts begin with, pictures included, is run once, as a causal model
            makes the same of it whatever follows.
        """
        batch = batch.to(self.model.device)
        branches: Any = batch.branches
        if branches is None:
            mask = batch.attention_mask[:, batch.prefix :].bool()
            # No attention mask: padding is on the right of a causal model, so nothing that counts sees it.
            return self._hidden(batch, None)[:, batch.prefix :].masked_fill(~mask[..., None], 0), mask
        # A token sees what precedes it in its own prompt.
        seen = (branches[:, None] == SHARED) | (branches[:, None] == branches[:, :, None])  # (B, query, key)
        hidden = self._hidden(batch, seen.tril()[:, None])
        positive, negative = ((branches == SHARED) | (branches == own) for own in (POSITIVE, NEGATIVE))
        return _select(hidden, positive, batch.prefix), _select(hidden, negative, batch.prefix)

    def summary(self, instructions: Sequence[str], pictures: Sequence[Sequence[Tensor]] | None = None) -> Tensor:
        """Hidden states (B, D) of each prompt's last token, which has seen all others. pictures: of each, or none."""
        hidden, mask = self(self.tokenize(instructions, pictures or [[] for _ in instructions]))
        return hidden[torch.arange(len(hidden)), mask.sum(1) - 1]

    def _hidden(self, batch: TokenBatch, seen: Tensor | None) -> Tensor:
        """Last hidden states (B, L, D); `seen` (B, 1, L, L) bool, None: all that precedes."""
        grid, pictures = batch.image_grid_thw, {}
        if grid is not None:
            pictures = {"pixel_values": batch.pixel_values, "image_grid_thw": grid}
            pictures |= tower_inputs(self.model.visual, grid, self.model.device)
        model: Any = self.model
        return model(
            input_ids=batch.input_ids, attention_mask=seen, position_ids=batch.position_ids, use_cache=False, **pictures
        ).last_hidden_state

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype = torch.float32, **settings: Any) -> Self:
        """Read text_encoder/ (with or without a head), tokenizer/ and processor/; `settings` as in `__init__`."""
        folder = Path(folder)
        if absent := [name for name in ("text_encoder", "tokenizer", "processor") if not (folder / name).is_dir()]:
            raise InputError(f"{folder} has no folder {absent[0]}/; give the folder of a whole model.")
        # Through the class with a head, because only that one knows every naming of the weights; the head goes at once.
        head: Any = Qwen2_5_VLForConditionalGeneration
        model = read_model(head, folder / "text_encoder", dtype, attn_implementation="sdpa").model
        tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        if tokenizer.convert_tokens_to_ids(PAD) != model.config.image_token_id:
            raise InputError(f"{folder / 'tokenizer'} does not belong to the weights beside it; download it again.")
        processor = Qwen2VLImageProcessorPil.from_pretrained(folder / "processor", local_files_only=True)
        return cls(model, tokenizer, processor, **settings)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write what `from_pretrained` reads, weights as `dtype`; `settings` are the caller's to keep."""
        parts = {"text_encoder": self.model, "tokenizer": self.tokenizer, "processor": self.processor}
        save_parts(folder, parts, dtype)
        compact = Path(folder) / "tokenizer" / "tokenizer.json"  # less than half of what transformers writes
        self.tokenizer.backend_tokenizer.save(str(compact), pretty=False)


def read_model(kind: Any, path: Path, dtype: torch.dtype, **settings: Any) -> Any:
    """Read a text model of transformers, whose head may be missing. Raises InputError where other weights are."""
    model, info = kind.from_pretrained(path, dtype=dtype, output_loading_info=True, local_files_only=True, **settings)
    if missing := sorted(info["missing_keys"] - {"lm_head.weight"}):
        raise InputError(f"{path} lacks {len(missing)} weights, the first is {missing[0]}; download it again.")
    return model


def save_parts(folder: str | Path, parts: Mapping[str, Any], dtype: torch.dtype | None = None) -> None:
    """Write each part, of transformers, into the folder of its name, whole or not at all; weights as `dtype`."""
    for name, part in parts.items():
        if isinstance(part, nn.Module) and dtype not in (None, part.dtype):
            part = copy.deepcopy(part).to(dtype)
        with atomic_folder(Path(folder) / name) as new:
            part.save_pretrained(new)


def _join(row: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Ids and positions of one prompt followed by what another does not share of them, and the branch of each token.

    Pictures are always shared: they come before all that differs, and their tokens do not merge with text.
    """
    (ids, _), (others, _) = row, other
    length = min(len(ids), len(others))
    shared = int((ids[:length] == others[:length]).long().cumprod(0).sum())
    counts = torch.tensor([shared, len(ids) - shared, len(others) - shared])
    branch = torch.tensor([SHARED, POSITIVE, NEGATIVE]).repeat_interleave(counts)
    return (torch.cat([ids, others[shared:]]), torch.cat([row[1], other[1][shared:]])), branch


def _select(hidden: Tensor, kept: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """The `kept` (B, L) of hidden states (B, L, D) less `prefix` leading ones, zero-padded to (B, T, D), and a mask."""
    rows = [states[keep][prefix:] for states, keep in zip(hidden, kept, strict=True)]
    text, lengths = pad_sequence(rows, True), torch.tensor([len(row) for row in rows], device=hidden.device)
    return text, torch.arange(text.shape[1], device=hidden.device) < lengths[:, None]
