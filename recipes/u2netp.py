"""u2netp.onnx -> the folder that nano-finder.toml starts from: `python recipes/u2netp.py u2netp.onnx runs/u2netp`.

Needs `pip install omnialpha[onnx]`. The file is U²-Netp as its authors trained it (arXiv 2005.09007, Apache-2.0),
exported with its batch norms folded into the convolutions before them; rembg's wheels and releases carry it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from omnialpha.models.u2net import U2NetP


def convolutions(net: U2NetP) -> list[torch.nn.Conv2d]:
    """In the order in which they run, which is the order of the graph's nodes."""
    blocks = [*net.encoder, *net.decoder]
    inside = [conv[0] for block in blocks for conv in (block.begin, *block.down, *block.up)]
    return [*inside, *net.side, net.fuse]


def convert(source: Path) -> U2NetP:
    """The network of an ONNX file, with hint blocks that do nothing yet."""
    import onnx

    graph = onnx.load(source).graph
    values = {one.name: torch.from_numpy(onnx.numpy_helper.to_array(one).copy()) for one in graph.initializer}
    found: list[tuple[Tensor, Tensor]] = [
        (values[node.input[1]], values[node.input[2]]) for node in graph.node if node.op_type == "Conv"
    ]
    net = U2NetP()
    own = convolutions(net)
    if len(found) != len(own):
        raise SystemExit(f"{source} has {len(found)} convolutions, U²-Netp {len(own)}: it is another network.")
    # the seven convolutions to one channel run between others' blocks: they are told by name
    named = {name: name.split(".")[0] for name in values if name.startswith(("side", "outconv")) and "weight" in name}
    ends = {part: (values[name], values[name.replace("weight", "bias")]) for name, part in named.items()}
    inside = [pair for pair in found if pair[0].shape[0] > 1]
    pairs = [*inside, *(ends[f"side{k + 1}"] for k in range(len(net.side))), ends["outconv"]]
    with torch.no_grad():
        for conv, (weight, bias) in zip(own, pairs, strict=True):
            conv.weight.copy_(weight)
            assert conv.bias is not None
            conv.bias.copy_(bias)
    return net


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python recipes/u2netp.py u2netp.onnx FOLDER")
    convert(Path(sys.argv[1])).save(Path(sys.argv[2]), torch.float32)
