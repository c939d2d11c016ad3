"""The Stable Diffusion family: weights in the public folder layout, served where they lie."""
