"""The recipe of a picture: all that is needed to make the same bytes again."""

import json
from typing import Self
from xml.sax.saxutils import quoteattr

from pydantic import BaseModel, ConfigDict

from app import __version__
from app.jobs.models import ModelCard
from app.jobs.record import JobRequest, OutputFormat, Sampler

__all__ = ["Recipe"]

# IPTC's term for pictures made by a trained model: what platforms look for to label them.
_DIGITAL_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about=""
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:avocat="urn:avocat:recipe"
 Iptc4xmpExt:DigitalSourceType="{source}"
 xmp:CreatorTool={tool}
 avocat:recipe={recipe}/>
</rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


class Recipe(BaseModel):
    """Equal recipes with equal fingerprints give equal bytes; so no time, job or index in here."""

    model_config = ConfigDict(frozen=True)

    prompt: str
    negative_prompt: str | None
    seed: int
    steps: int
    sampler: Sampler
    guidance_scale: float
    guidance_interval: tuple[float, float]
    size: str
    background: str
    output_format: OutputFormat
    model: str
    bundle_sha256: str
    fingerprint: str
    version: str = __version__

    @classmethod
    def of(cls, request: JobRequest, seed: int, card: ModelCard) -> Self:
        """The recipe of one picture of a job, drawn by the model of `card`."""
        return cls(
            **request.model_dump(include=set(cls.model_fields) - {"seed"}),
            seed=seed,
            bundle_sha256=card.bundle_sha256,
            fingerprint=card.fingerprint,
        )

    def as_json(self) -> str:
        """ASCII JSON: everything else is escaped, so that it fits into any metadata field."""
        return json.dumps(self.model_dump(), ensure_ascii=True, separators=(",", ":"))

    def as_parameters(self) -> str:
        """The text that many programs for generated pictures read and show."""
        lines = [_printable(self.prompt)]
        if self.negative_prompt:
            lines.append(f"Negative prompt: {_printable(self.negative_prompt)}")
        settings = {
            "Steps": self.steps,
            "Sampler": self.sampler,
            "CFG scale": f"{self.guidance_scale:g}",
            "Seed": self.seed,
            "Size": self.size,
            "Model hash": self.bundle_sha256[:10],
            "Model": self.model,
            "Version": f"avocat {self.version}",
        }
        lines.append(", ".join(f"{name}: {value}" for name, value in settings.items()))
        return "\n".join(lines)

    def as_xmp(self) -> str:
        """An XMP packet: the mark of a generated picture, and the recipe."""
        tool, recipe = quoteattr(f"Avocat {self.version}"), quoteattr(self.as_json())
        return _XMP.format(source=_DIGITAL_SOURCE, tool=tool, recipe=recipe)


def _printable(text: str) -> str:
    """What no text field can hold (NUL, halves of surrogate pairs) as question marks."""
    return text.replace("\0", "?").encode("utf-8", "replace").decode()
