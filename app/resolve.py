"""From a body to a request with every field resolved, or a list of all that is wrong."""

import math
import random
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from app.errors import InvalidRequest
from app.field_problems import field_problem, not_valid, pointer
from app.jobs.models import ModelCard
from app.jobs.record import JobRequest, LoraUse
from app.jobs.scene import read_scene
from app.json_body import JsonBody
from app.schemas.jobs import MAX_SEED, JobCreate
from app.schemas.problems import FieldProblem

__all__ = ["Draft", "resolve"]

T = TypeVar("T")

_ALL = (0.0, 1.0)  # of what starts from a picture only the end of the way may be taken
_STRENGTH, _STRENGTH_UNDER_MASK = 0.8, 1.0  # diffusers' defaults; of a single step the latter


class Draft:
    """A body as far as it could be read: right fields as given, wrong ones left out.

    `files` are pictures that came beside the fields, by the name of the field that they stand for.
    """

    def __init__(
        self,
        body: JsonBody,
        files: Mapping[str, bytes] | None = None,
        *,
        transparent_mask: bool = False,
        variation: bool = False,
    ) -> None:
        """`transparent_mask`: it is transparent where to draw anew; `variation`: has no prompt."""
        self.files: Mapping[str, bytes] = files or {}
        self.transparent_mask = transparent_mask
        self._variation = variation
        self.errors = [
            FieldProblem(pointer=place, message="Holds half a surrogate pair, which is no text")
            for place in body.surrogates
        ]
        self._wrong = {place.split("/")[1] for place in body.surrogates if place}
        self.fields = self._read(body.value)

    def _read(self, value: object) -> JobCreate:
        if not self._variation or not isinstance(value, dict):
            return self._validated(value)
        return self._validated({"prompt": "?", **value}).model_copy(update={"prompt": ""})

    def _validated(self, value: Any) -> JobCreate:
        try:
            return JobCreate.model_validate(value)
        except ValidationError as error:
            entries = error.errors()
        known = {place.pointer for place in self.errors}
        found = [field_problem(entry) for entry in entries]
        self.errors += [problem for problem in found if problem.pointer not in known]
        self._wrong |= {str(entry["loc"][0]) for entry in entries if entry["loc"]}
        right = value if isinstance(value, Mapping) else {}
        kept = {name: given for name, given in right.items() if name not in self._wrong}
        # Only to go on checking: a draft with errors is never used.
        return JobCreate.model_validate({"prompt": "?", **kept})

    def refuse(self, name: str, message: str, *also: str) -> None:
        """Note a wrong field, unless it or one it is held against is wrong anyway."""
        if not self._wrong.intersection({name, *also}):
            # A form calls it `image`.
            shown = "image" if name == "init_image" and name in self.files else name
            self.errors.append(FieldProblem(pointer=pointer(shown), message=message))

    def check(self) -> None:
        """Raise InvalidRequest if anything is wrong."""
        if self.errors:
            raise InvalidRequest(not_valid(self.errors), errors=self.errors)


def resolve(draft: Draft, card: ModelCard, inputs: Mapping[str, str] | None = None) -> JobRequest:
    """Fill in the model's defaults; `inputs` are the sha256 of what it starts from, by field.

    Raises:
        InvalidRequest: something is wrong; names every wrong field at once.
    """
    fields = draft.fields
    candidates = _or(fields.best_of, fields.n)
    if candidates < fields.n:
        draft.refuse("best_of", f"{candidates} should be at least n = {fields.n}", "n")
    _refuse_what_the_model_has_not(draft, card)
    _refuse_transparency(draft, card)
    lora = _loras(draft, card)
    strength = _strength(draft, card)
    compose = _compose(draft, card, starts_from_noise=strength is None)
    seed = _seed(draft, candidates)
    draft.check()
    interval = fields.guidance_interval
    return JobRequest(
        prompt=fields.prompt,
        negative_prompt=fields.negative_prompt,
        model=card.name,
        n=fields.n,
        seed=seed,
        steps=_or(fields.steps, card.default_steps),
        sampler=_or(fields.sampler, card.default_sampler),
        guidance_scale=_or(fields.guidance_scale, card.default_guidance_scale),
        guidance_interval=_or(
            interval, card.default_guidance_interval if strength is None else _ALL
        ),
        size=_or(fields.size, card.native),
        output_format=fields.output_format,
        background=_background(fields, card),
        priority=fields.priority,
        best_of=candidates,
        cache=fields.cache,
        webhook_url=fields.webhook_url,
        lora=lora,
        init_image=(inputs or {}).get("init_image"),
        mask=(inputs or {}).get("mask"),
        strength=strength,
        compose=compose,
        scene=read_scene(fields.prompt, card.styles) if compose else None,
    )


def _seed(draft: Draft, candidates: int) -> int:
    """The first of the seeds, drawn where none is given."""
    fields = draft.fields
    seed = fields.seed
    if seed is None:
        seed = random.randrange(MAX_SEED - candidates)  # noqa: S311 - everybody may know it
    if seed + candidates - 1 > MAX_SEED:
        which = "n" if candidates == fields.n else "best_of"
        message = f"With {which} = {candidates} the seed is at most {MAX_SEED - candidates + 1}"
        draft.refuse("seed", f"{message}, not {seed}", "n", "best_of")
    return seed


def _strength(draft: Draft, card: ModelCard) -> float | None:
    """How much of the way is gone from the picture; None where there is none to start from."""
    fields = draft.fields
    masked = fields.mask is not None or "mask" in draft.files
    if fields.init_image is None and "init_image" not in draft.files:
        for name, given in (("mask", masked), ("strength", fields.strength is not None)):
            if given:
                draft.refuse(name, "It needs an init_image to start from", "init_image")
        return None
    steps = _or(fields.steps, card.default_steps)
    usual = _STRENGTH_UNDER_MASK if masked or steps == 1 else _STRENGTH
    strength = _or(fields.strength, usual)
    if int(steps * strength) < 1:
        least = math.ceil(1000 / steps) / 1000  # upwards: 0.333 of 3 steps is none
        message = f"{strength} of {steps} steps is less than one; give at least {least}"
        draft.refuse("strength", message, "steps")
    return strength


def _compose(draft: Draft, card: ModelCard, *, starts_from_noise: bool) -> bool:
    """Whether the things of a scene are painted one by one."""
    asked = draft.fields.compose
    if asked and not card.composes:
        draft.refuse("compose", f"The model {card.name!r} paints every prompt whole", "model")
    if asked and not starts_from_noise:
        draft.refuse("compose", "What starts from a picture is painted whole", "init_image")
    return _or(asked, card.composes) and starts_from_noise


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _refuse_what_the_model_has_not(draft: Draft, card: ModelCard) -> None:
    fields = draft.fields
    if fields.size is not None and fields.size not in card.sizes:
        _refuse_size(draft, fields.size, card)
    if fields.steps is not None and fields.steps > card.max_steps:
        message = f"{fields.steps} should be at most {card.max_steps}, the training length"
        draft.refuse("steps", message, "model")
    elif _or(fields.sampler, card.default_sampler) == "lcm":
        _refuse_steps_of_lcm(draft, _or(fields.steps, card.default_steps), card.lcm_steps)
    if fields.sampler is not None and fields.sampler not in card.samplers:
        message = f"{fields.sampler!r} should be one of {', '.join(card.samplers)}"
        draft.refuse("sampler", message, "model")
    if fields.guidance_interval is not None:
        begin, end = fields.guidance_interval
        if begin > end:
            message = f"[{begin}, {end}] ends before it begins; give [from, to]"
            draft.refuse("guidance_interval", message)


def _refuse_steps_of_lcm(draft: Draft, steps: int, most: int | None) -> None:
    if most is not None and steps > most:
        message = f"{steps} should be at most {most} for lcm, those of its distillation"
        draft.refuse("steps", message, "model", "sampler")


def _refuse_size(draft: Draft, size: str, card: ModelCard) -> None:
    free, choice = card.free_sizes, ", ".join(card.sizes)
    if free is not None and free.allow(size):
        return
    if free is not None:
        choice += (
            f", or of sides that are multiples of {free.multiple_of} from {free.smallest_side} to "
            f"{free.largest_side}, together at most {free.most_pixels} pixels"
        )
    draft.refuse("size", f"{size!r} should be one of {choice}", "model")


def _loras(draft: Draft, card: ModelCard) -> tuple[LoraUse, ...]:
    """What is asked for, by the hashes that the model's worker has announced."""
    known = {one.name: one for one in card.loras}
    fit = ", ".join(one.name for one in card.loras if not one.fault)
    found: dict[str, LoraUse] = {}
    for asked in draft.fields.lora:
        lora = known.get(asked.name)
        if asked.name in found:
            draft.refuse("lora", f"{asked.name!r} is named twice; give it once, with its weight")
        elif lora is None:
            choice = f"should be one of {fit}" if fit else _no_loras(card)
            draft.refuse("lora", f"{asked.name!r} {choice}", "model")
        elif lora.fault:
            draft.refuse("lora", lora.fault, "model")
        else:
            use = LoraUse(name=lora.name, weight=asked.weight, sha256=lora.sha256)
            found[asked.name] = use
    return tuple(found.values())


def _no_loras(card: ModelCard) -> str:
    if card.runtime:  # it is loaded
        return f"is unknown: {card.name!r} has no LoRAs"
    return (
        f"is not known yet: what suits {card.name!r} is found when it is loaded; load it first "
        f"(POST /v1/models/{card.name}/load, or a job without a LoRA)"
    )


def _refuse_transparency(draft: Draft, card: ModelCard) -> None:
    if draft.fields.background != "transparent":
        return
    if draft.fields.output_format == "jpeg":
        message = "JPEG has no transparency; use another background or output_format"
        draft.refuse("background", message, "output_format")
    elif card.channels != 4:
        message = f"The model {card.name!r} has no transparency; use another background"
        draft.refuse("background", message, "model")


def _background(fields: JobCreate, card: ModelCard) -> str:
    if fields.background is not None:
        return fields.background.lower()
    opaque = fields.output_format == "jpeg" or card.channels != 4
    return (
        "white" if opaque and card.default_background == "transparent" else card.default_background
    )
