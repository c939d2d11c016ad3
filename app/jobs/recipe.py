"""The recipe of a picture: all that is needed to make the same bytes again; written and read."""

import json
from typing import Self
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from pydantic import BaseModel, ConfigDict

from app import __version__
from app.jobs.models import ModelCard
from app.jobs.record import JobRequest, LoraUse, OutputFormat, Sampler
from app.jobs.scene import Scene

__all__ = ["PNG_TEXT", "PNG_XMP", "Recipe", "recipe_in_xmp"]

# Keywords of a PNG's texts: the recipe as JSON, and the XMP packet.
PNG_TEXT = "avocat"
PNG_XMP = "XML:com.adobe.xmp"

# IPTC's term for pictures made by a trained model: what platforms look for to label them.
_DIGITAL_SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
# Left out of recipes of pictures that start from noise.
_OF_INPUTS = {"init_image", "mask", "strength"}
_NAMESPACE = "urn:avocat:recipe"
_MOST_CHARACTERS = 65536  # of a recipe; 1000 characters of each prompt need far less
_XMP = """\
<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about=""
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:avocat="{namespace}"
 Iptc4xmpExt:DigitalSourceType="{source}"
 xmp:CreatorTool={tool}
 avocat:recipe={recipe}/>
</rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


class Recipe(BaseModel):
    """Equal recipes with equal fingerprints give equal bytes; so no time, job or index in here."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

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
    init_image: str | None = None  # sha256 of the files that it starts from
    mask: str | None = None
    strength: float | None = None
    compose: bool = False
    scene: Scene | None = None  # what the prompt was read as
    model: str
    bundle_sha256: str
    fingerprint: str
    lora: tuple[LoraUse, ...] = ()
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

    @classmethod
    def read(cls, text: str) -> Self:
        """A recipe from `as_json`; what it says may be anything and is to be checked.

        Raises:
            ValueError: it is no recipe.
        """
        if len(text) > _MOST_CHARACTERS:
            raise ValueError(f"{len(text)} characters are more than any recipe has")
        return cls.model_validate_json(text)

    def as_json(self) -> str:
        """ASCII JSON: everything else is escaped, so that it fits into any metadata field."""
        absent = (set() if self.lora else {"lora"}) | (set() if self.init_image else _OF_INPUTS)
        absent |= (set() if self.compose else {"compose"}) | (set() if self.scene else {"scene"})
        said = self.model_dump(exclude=absent)
        return json.dumps(said, ensure_ascii=True, separators=(",", ":"))

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
            **({} if self.init_image is None else {"Denoising strength": f"{self.strength:g}"}),
            "Model hash": self.bundle_sha256[:10],
            "Model": self.model,
            **self._lora_texts(),
            "Version": f"avocat {self.version}",
        }
        lines.append(", ".join(f"{name}: {value}" for name, value in settings.items()))
        return "\n".join(lines)

    def _lora_texts(self) -> dict[str, str]:
        """Names with hashes as other programs write them, and with weights."""
        if not self.lora:
            return {}
        hashes = ", ".join(f"{_printable(one.name)}: {one.sha256[:12]}" for one in self.lora)
        weights = ", ".join(f"{_printable(one.name)}: {one.weight:g}" for one in self.lora)
        return {"Lora hashes": f'"{hashes}"', "Lora weights": f'"{weights}"'}

    def as_xmp(self) -> str:
        """An XMP packet: the mark of a generated picture, and the recipe."""
        tool, recipe = quoteattr(f"Avocat {self.version}"), quoteattr(self.as_json())
        return _XMP.format(source=_DIGITAL_SOURCE, namespace=_NAMESPACE, tool=tool, recipe=recipe)


def recipe_in_xmp(packet: bytes) -> str | None:
    """The JSON of the recipe in an XMP packet, as an attribute or, as other programs write it, an
    element; None where there is none."""
    name = f"{{{_NAMESPACE}}}recipe"
    try:
        text = packet.decode()
        if "<!" in text:  # XMP has no document type, and so no entities that could grow
            return None
        root = ElementTree.fromstring(text)  # noqa: S314 - see above
    except (ValueError, ElementTree.ParseError):
        return None
    found = next((node.get(name) for node in root.iter() if node.get(name)), None)
    return found or root.findtext(f".//{name}")


def _printable(text: str) -> str:
    """What no text field can hold (NUL, halves of surrogate pairs) as question marks."""
    return text.replace("\0", "?").encode("utf-8", "replace").decode()
