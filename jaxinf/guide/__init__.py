"""Conditioning: score models tilted by evidence, experts, rewards and end points."""

__all__: list[str] = []
