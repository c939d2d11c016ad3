"""Examples of what is answered, for the OpenAPI document; a test holds them against the schemas."""

from collections.abc import Mapping
from typing import Any

__all__ = ["EVENTS", "EXAMPLES"]

_ID = "01M83E76RQEB75JJK6YCCBPSR8"
_BUNDLE = "3b8b6c6f0f9d4a3e8f1b7c0d2e5a9f416c2d8e7b0a1f3c5d7e9b2a4c6d8f0e13"
_FINGERPRINT = "5f0c7a1be2d94c3688a0d1f7b6e4c25a"
_ASKED = {
    "prompt": "a red apple", "negative_prompt": None, "seed": 7, "steps": 25,
    "sampler": "dpmpp_2m", "guidance_scale": 3.0, "guidance_interval": [0.0, 1.0],
    "size": "64x64", "output_format": "png", "background": "transparent", "model": "emoji",
    "init_image": None, "mask": None, "strength": None, "compose": False,
}  # fmt: skip
_JOB = {
    "id": _ID,
    "object": "job",
    "status": "succeeded",
    "created_at": "2026-11-23T05:31:49.399Z",
    "started_at": "2026-11-23T05:31:49.412Z",
    "finished_at": "2026-11-23T05:31:50.903Z",
    "expires_at": "2026-11-24T05:31:50.903Z",
    "request": _ASKED
    | {"n": 1, "priority": "normal", "best_of": 1, "cache": True, "webhook_url": None}
    | {"lora": [], "scene": None},
    "progress": {"step": 25, "total_steps": 25, "fraction": 1.0},
    "queue_position": None,
    "eta_seconds": None,
    "images": [
        {
            "index": 0,
            "url": f"/v1/images/{_ID}_3f2a9c01_0.png?expires=1795498310&signature=9d2e",
            "seed": 7,
            "width": 64,
            "height": 64,
            "content_type": "image/png",
            "bytes": 5123,
            "sha256": "0d6c4f0b5f1e4a7c9be2d3a8f7c6b5e4d3c2b1a09f8e7d6c5b4a39281706f5e4",
            "clip_score": 0.31,
        }
    ],
    "attempts": 1,
    "cached": False,
    "warnings": [],
    "error": None,
    "metadata": {},
}
_MODEL = {
    "id": "emoji",
    "object": "model",
    "created": 1795400000,
    "owned_by": "avocat",
    "description": "Emoji-like pictures with transparency",
    "license": "Apache-2.0",
    "bundle_sha256": _BUNDLE,
    "fingerprint": _FINGERPRINT,
    "runtime": "openvino 2026.4.1",
    "dtype": "float32",
    "forward_ms": 7.1,
    "difference": 8.6e-06,
    "native_size": "64x64",
    "sizes": ["64x64", "128x128", "256x256"],
    "free_sizes": None,
    "channels": 4,
    "samplers": ["ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_karras", "euler", "euler_ancestral"],
    "default_sampler": "dpmpp_2m",
    "default_steps": 25,
    "default_guidance_scale": 3.0,
    "default_guidance_interval": [0.0, 1.0],
    "default_background": "transparent",
    "composes": True,
    "styles": ["noto", "flat"],
    "max_steps": 1000,
    "lcm_steps": None,
    "context_length": 77,
    "exact": True,
    "is_default": True,
    "loras": [],
    "loaded": True,
}
_PLACE = {
    "model": "sd15",
    "worker": "render-1-4711-9c0d",
    "device": "cuda:0",
    "state": "available",
    "weights_bytes": 4265000000,
    "source": "/srv/models/stable-diffusion-v1-5",
    "detail": "",
}
_WORKER = {
    "id": "render-1-4711-9c0d",
    "object": "worker",
    "device": "cuda:0",
    "free_bytes": 20100000000,
    "budget_bytes": None,
    "models": [_PLACE],
}

# By the name of the schema.
EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "JobObject": _JOB,
    "JobList": {"object": "list", "data": [_JOB], "next_cursor": None},
    "ModelObject": _MODEL,
    "ModelList": {"object": "list", "data": [_MODEL]},
    "ModelMove": {"worker": None},
    "ModelPlaces": {
        "id": "sd15",
        "object": "model.places",
        "loaded": False,
        "places": [_PLACE],
    },
    "WorkerList": {"object": "list", "data": [_WORKER]},
    "WorkerObject": _WORKER,
    "PlaceObject": _PLACE,
    "Images": {
        "created": 1795411909,
        "data": [{"b64_json": "iVBORw0KGgoAAAANSUhEUgAA", "url": None}],
        "background": "transparent",
        "output_format": "png",
        "size": "64x64",
    },
    "Verification": {
        "verdict": "identical",
        "reason": "All 4096 pixels are as its recipe has it",
        "recipe": _ASKED
        | {"bundle_sha256": _BUNDLE, "fingerprint": _FINGERPRINT, "version": "0.1.0"},
        "fingerprint": _FINGERPRINT,
        "job_id": _ID,
    },
    "Health": {"status": "ok"},
    "Readiness": {"status": "ready", "workers": 1},
    "ProblemDetails": {
        "type": "/problems/invalid-request",
        "title": "The request is not valid",
        "status": 422,
        "detail": "Not valid: /n",
        "instance": "6ea56f231385b9d46fd293e8eb4d41bf",
        "errors": [
            {
                "pointer": "/n",
                "message": "Input should be less than or equal to 8, not 9",
                "in": "body",
            }
        ],
    },
    "ErrorAnswer": {
        "error": {
            "message": "n: Input should be less than or equal to 8, not 9",
            "type": "invalid_request_error",
            "param": "n",
            "code": "invalid_request",
        }
    },
}
EVENTS = """\
event: status
id: 1
data: {"status":"running","attempts":1,"queue_position":null,"eta_seconds":0.9}

event: progress
id: 1-12
data: {"step":12,"total_steps":25,"fraction":0.48}

"""
