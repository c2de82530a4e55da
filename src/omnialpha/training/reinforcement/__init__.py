"""Reinforcement on decoded layers: rollouts, rewards, advantages, and the updates of GRPO and DiffusionNFT."""
