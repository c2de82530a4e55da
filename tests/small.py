"""A transformer so small that tests can make one for every case."""

AXES = (4, 6, 6)
CONFIG = {
    "num_layers": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "axes_dims_rope": AXES,
    "joint_attention_dim": 32,
    "in_channels": 16,
    "out_channels": 4,
}
