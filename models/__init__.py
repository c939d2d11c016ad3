"""Tensors and files: noise schedules, samplers, the denoiser, CLIP contexts, bundles, training.

Nothing here knows HTTP, Redis or jobs.
"""
