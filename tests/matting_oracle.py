"""Matting pictures of integer arithmetic, and what the original MATLAB code says of them.

`from matting_oracle import GOLDEN, PREDICTED, TRIMAP, TRUE`. The figures are those of the evaluation code published
beside Deep Image Matting (Xu et al. 2017), run unchanged under Octave on the same pictures as 8-bit files; sums are
in thousands. No random numbers and no rounding: every machine draws the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

HEIGHT, WIDTH = 48, 64
Y, X = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")


def disk(y: int, x: int, radius: int, softness: int) -> Tensor:
    """A soft disk in 0..255."""
    inside = radius**2 - (Y - y) ** 2 - (X - x) ** 2
    return (inside * 255).div(softness, rounding_mode="floor").clamp(0, 255)


def unknown_band() -> Tensor:
    """255 within the large disk, 0 along the right and lower edges, 128 elsewhere."""
    grey = torch.where(disk(24, 22, 10, 1) > 0, 255, 128)
    return grey.masked_fill((X >= 61) | (Y >= 44), 0)


# All are (HEIGHT, WIDTH) integers in 0..255
TRIMAP = unknown_band()
TRUE = torch.maximum(disk(24, 22, 16, 260), (disk(14, 52, 7, 60) * 3).div(4, rounding_mode="floor"))
PREDICTED = {
    "same": TRUE,
    "shift": TRUE.roll(2, dims=1),
    "quant51": (TRUE + 25) // 51 * 51,
    "half": TRUE // 2,
    "scale90": TRUE * 9 // 10,
    "hole": TRUE.masked_fill(((Y - 24).abs() < 4) & ((X - 22).abs() < 5), 0),
    "dither": (TRUE + ((X * 7 + Y * 13) % 11 - 5) * 6).clamp(0, 255),
    "ramp": X * 255 // (WIDTH - 1),
    "empty": TRUE * 0,
    "full": TRUE * 0 + 255,
    "invert": 255 - TRUE,
    "const128": TRUE * 0 + 128,
    "twocomp": TRUE.masked_fill(X < 32, 0),
    "tiny": (TRUE * 0).index_put((torch.tensor(24), torch.tensor(22)), torch.tensor(255)),
}

_TABLE = """
case      region   sad           mse                grad               conn
const128  unknown  1.00825131    0.202189341        0.520401001        1.01767111
const128  whole    1.29267061    0.198147789        0.60532546         1.29921401
dither    unknown  0.0959059149  0.00345663354      0.00529388059      0.0251098014
dither    whole    0.127007872   0.00353493332      0.00633555371      0.0366921537
empty     unknown  0.198368669   0.0339348391       0.520401001        0.185019627
empty     whole    0.441125542   0.0903418362       0.60532546         0.427776545
full      unknown  2.18063164    0.867168307        0.520401001        2.20670199
full      whole    2.6308744     0.803150833        0.60532546         2.66510177
half      unknown  0.0997725576  0.00856346078      5.35734216e-06     0.111647055
half      whole    0.221443176   0.0227226745       7.65321329e-06     0.248403966
hole      unknown  0             0                  0.00241051335      0
hole      whole    0.059376467   0.0182311628       0.263967365        0.059376467
invert    unknown  2.00812125    0.802206516        7.57106524e-33     2.02412939
invert    whole    2.57663512    0.786985099        1.04868187e-32     2.60808611
quant51   unknown  0.0317764767  0.000933330273     0.00204131822      0.00859215669
quant51   whole    0.0476352833  0.00106792373      0.00470361672      0.00859215669
ramp      unknown  1.04223144    0.282864839        0.375242412        1.02915299
ramp      whole    1.43613756    0.31005469         0.428360879        1.43660021
same      unknown  0             0                  0                  0
same      whole    0             0                  0                  0
scale90   unknown  0.0209882408  0.000370433409     8.75360092e-06     0.00514509855
scale90   whole    0.0458274521  0.000957324228     1.05352892e-05     0.0200274531
shift     unknown  0.0858431682  0.00563641312      0.0698742121       0.0815157071
shift     whole    0.105835341   0.00495917117      0.0756571591       0.0946039334
tiny      unknown  0.198368669   0.0339348391       0.520401001        0.185019627
tiny      whole    0.440156907   0.0900265276       0.604341269        0.426792234
twocomp   unknown  0.120294139   0.0209866744       0.353555173        0.113109805
twocomp   whole    0.363050997   0.0803145841       0.447418749        0.3558667
"""

_HEAD, *_ROWS = (line.split() for line in _TABLE.strip().splitlines())
# (case, region) -> metric -> figure
GOLDEN: dict[tuple[str, str], dict[str, float]] = {
    (case, region): dict(zip(_HEAD[2:], map(float, figures), strict=True)) for case, region, *figures in _ROWS
}
