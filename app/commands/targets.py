"""Where pictures are written, checked before anything is drawn."""

import re
from pathlib import Path

from app.client import Image, Job, Picture
from app.commands.console import ExitCode, fail

__all__ = ["Target"]

FORMATS = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg"}
LONGEST_NAME = 48


class Target:
    """A file (`cat.png`, numbered for several pictures), or a folder that files are named in.

    Args:
        output: what the user gave.
        picture_format: png, webp or jpeg for a folder; a file's ending decides by itself.
        prompts: how many prompts there are; several need a folder.
    """

    def __init__(self, output: str, picture_format: str | None, prompts: int) -> None:
        self._path = Path(output)
        self._folder = output.endswith("/") or self._path.is_dir()
        self._several = prompts > 1
        if self._folder:
            self.picture_format = picture_format or "png"
            self._make_folder()
        else:
            self.picture_format = self._of_file(output, picture_format)

    def _make_folder(self) -> None:
        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except OSError as fault:
            fail(f"cannot make the folder {str(self._path)!r}: {fault.strerror}")

    def _of_file(self, output: str, picture_format: str | None) -> str:
        found = FORMATS.get(self._path.suffix.lower())
        if found is None or picture_format not in (None, found):
            wanted = [end for end, name in FORMATS.items() if picture_format in (None, name)]
            fail(
                f"--output {output!r} should end in {', '.join(wanted)}, or in / for a folder",
                ExitCode.BAD_INPUT,
            )
        if self._several:
            fail(f"several prompts need a folder: end --output {output!r} in /", ExitCode.BAD_INPUT)
        if not self._path.parent.is_dir():
            fail(f"there is no folder {str(self._path.parent)!r} to write to", ExitCode.BAD_INPUT)
        return found

    def save(self, pictures: list[Picture], number: int) -> list[Path]:
        """Write the pictures of prompt `number`; ends with a sentence where that fails."""
        files = []
        for picture in pictures:
            file = self.file(picture.job, picture.image, number)
            try:
                files.append(picture.save(file).resolve())
            except OSError as fault:
                fail(f"cannot write {str(file)!r}: {fault.strerror}")
        return files

    def file(self, job: Job, image: Image, number: int) -> Path:
        """The file of one picture: `out/003-a-red-apple-7.png`, or `cat-1.png`, `cat-2.png`, …"""
        if self._folder:
            words = "-".join(re.findall(r"\w+", job.request.prompt.lower()))[:LONGEST_NAME]
            line = f"{number:03}-" if self._several else ""
            ending = "jpg" if self.picture_format == "jpeg" else self.picture_format
            return self._path / f"{line}{words.strip('-') or 'picture'}-{image.seed}.{ending}"
        if len(job.images) == 1:
            return self._path
        return self._path.with_stem(f"{self._path.stem}-{image.index + 1}")
