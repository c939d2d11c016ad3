"""Folders as people have them: what cannot be used is named, skipped and counted, never a crash."""

import io
import json
import os
import random
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from models.errors import DatasetError
from models.train.data import _eight_bit, load_pictures
from tests.models.conftest import COLOURS, draw


def picture(**options: object) -> bytes:
    buffer = io.BytesIO()
    draw(COLOURS["red"], "disc").save(buffer, **{"format": "PNG"} | options)  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ({"a.json": b"{"}, "cannot be read"),
        ({"a.json": b'["a cat"]'}, "is a list"),
        ({"a.json": b'{"name": 3}'}, "neither a 'name' nor a 'caption'"),
        ({"a.json": b'{"name": "cat", "keywords": 7}'}, "'keywords' is 7"),
        ({"a.json": b'{"name": "cat", "style": ["flat"]}'}, "'style' is"),
        ({"a.txt": b"  \n"}, "caption is empty"),
        ({"a.txt": b"\xff\xfe\x00"}, "cannot be read"),
        ({"a.json": b'{"name": "\\ud83d half a character"}'}, "cannot be read"),
        ({"a.json": b"[" * 200_000}, "cannot be read"),
        ({}, "no caption beside the picture"),
    ],
)
def test_a_caption_that_cannot_be_used_is_named(
    folder: Path, caption: dict[str, bytes], reason: str
) -> None:
    (folder / "a.png").write_bytes(picture())
    for name, content in caption.items():
        (folder / name).write_bytes(content)
    data = load_pictures(folder, 16, progress=False)
    assert len(data) == 6
    assert [str(folder / "a.png") in line and reason in line for line in data.skipped] == [True]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_no_damage_to_a_picture_is_a_crash(folder: Path, kind: str) -> None:
    """A hundred files with bytes changed or cut: each is read or named."""
    rng = random.Random(0)
    whole = io.BytesIO()
    draw(COLOURS["blue"], "disc").convert("RGB").save(whole, kind)
    for i in range(100):
        broken = bytearray(whole.getvalue())
        for _ in range(rng.randrange(1, 20)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        cut = len(broken) if i % 2 else rng.randrange(len(broken))
        (folder / f"{i}.png").write_bytes(broken[:cut])
        (folder / f"{i}.txt").write_text("a disc")
    data = load_pictures(folder, 8, progress=False)
    assert len(data) + len(data.skipped) == 106
    assert all("cannot be read" in line for line in data.skipped)
    assert data.skipped


@pytest.mark.parametrize("caption", ["IMG_1.TXT", "IMG_1.Json"])
def test_a_camera_that_shouts_is_understood(folder: Path, caption: str) -> None:
    (folder / "IMG_1.PNG").write_bytes(picture())
    (folder / caption).write_text('{"caption": "a disc"}' if caption.endswith("n") else "a disc")
    data = load_pictures(folder, 8, progress=False)
    assert (len(data), data.skipped) == (7, [])


@pytest.mark.parametrize("kind", ["gif", "BMP", "tiff"])
def test_a_captioned_picture_of_a_kind_that_is_not_read_is_named(folder: Path, kind: str) -> None:
    (folder / f"a.{kind}").write_bytes(picture(format=kind.upper()))
    assert load_pictures(folder, 8, progress=False).skipped == []
    (folder / "a.txt").write_text("a disc")
    [line] = load_pictures(folder, 8, progress=False).skipped
    assert line.startswith(f"{folder}/a.{kind}: .{kind} is not read")
    (folder / "a.png").write_bytes(picture())
    assert load_pictures(folder, 8, progress=False).skipped == []


@pytest.mark.parametrize("name", ["a.png", "a.txt"])
def test_a_pipe_is_named_and_not_waited_for(folder: Path, name: str) -> None:
    (folder / "a.png").write_bytes(picture())
    (folder / "a.txt").write_text("a disc")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    [line] = load_pictures(folder, 8, progress=False).skipped
    assert line.endswith("a.png: it cannot be read: it is no file")


def test_a_folder_without_rights_is_not_called_empty(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: path != folder)  # root may read all
    with pytest.raises(DatasetError, match="cannot be read: let this user list and enter it"):
        load_pictures(folder, 8, progress=False)


def test_folders_that_are_not_looked_into_are_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "closed").mkdir()
    (folder / "linked").symlink_to(tmp_path)
    scan = os.scandir

    def refuse(path: str | Path) -> object:  # root may list all
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    data = load_pictures(folder, 8, progress=False)
    assert len(data) == 6
    assert data.skipped == [
        f"{folder / 'closed'}: the folder cannot be listed: Permission denied",
        f"{folder / 'linked'}: a link to a folder is not followed",
    ]


def test_what_is_no_picture_is_said_in_words(folder: Path) -> None:
    (folder / "a.png").write_bytes(b"")
    (folder / "a.txt").write_text("a disc")
    [line] = load_pictures(folder, 8, progress=False).skipped
    assert line.endswith("a.png: the picture cannot be read: it is of no kind that is known")


def test_a_picture_too_large_to_open_is_skipped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DatasetError, match="exceeds limit"):
        load_pictures(folder, 8, progress=False)


def test_a_picture_that_is_just_large_is_read_without_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)  # of 576; Pillow refuses from 800 on
    assert len(load_pictures(folder, 8, progress=False)) == 6


def test_a_banner_is_read_without_a_square_of_its_length(tmp_path: Path) -> None:
    Image.new("RGBA", (40_000, 30), (255, 0, 0, 128)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a banner")
    banner = load_pictures(tmp_path, 8, progress=False).pictures[0]
    assert banner[3].sum() > 0
    assert (banner[0] == banner[3]).all()  # premultiplied red


def test_keywords_in_one_text_and_lines_in_a_caption_are_understood(folder: Path) -> None:
    (folder / "a.png").write_bytes(picture())
    (folder / "a.json").write_text(json.dumps({"caption": "a\n cat ", "keywords": "pet, kitten,"}))
    entry = load_pictures(folder, 8, progress=False).captions[0]
    assert (entry.name, entry.keywords) == ("cat", ("pet", "kitten"))


def test_a_photograph_is_turned_as_its_camera_was_held(tmp_path: Path) -> None:
    photo = Image.new("RGB", (8, 8), "white")
    photo.paste("red", (0, 0, 8, 4))  # red above
    exif = Image.Exif()
    exif[0x0112] = 3  # held upside down
    photo.save(tmp_path / "a.png", exif=exif)
    (tmp_path / "a.txt").write_text("half red")
    turned = load_pictures(tmp_path, 8, progress=False).pictures[0]
    assert turned[:3, 0, 4].tolist() == [255, 255, 255]
    assert turned[:3, 7, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("name", ["a.png", "a.txt"])
def test_a_folder_named_like_a_file_is_skipped(folder: Path, name: str) -> None:
    (folder / "a.png").write_bytes(picture())
    (folder / "a.txt").write_text("a disc")
    (folder / name).unlink()
    (folder / name).mkdir()
    data = load_pictures(folder, 8, progress=False)
    assert len(data) == 6
    assert [str(folder / "a.png") in line and name in line for line in data.skipped] == [True]


def test_a_file_that_may_not_be_read_is_skipped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "red_disc.json":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    data = load_pictures(folder, 8, progress=False)
    assert len(data) == 5
    assert ["red_disc.json" in line for line in data.skipped] == [True]


@pytest.mark.parametrize(
    ("mode", "level"), [("I;16", 0x4000), ("I;16B", 0x4000), ("I", 0x4000), ("F", 0.25)]
)
def test_deep_greys_are_grey_and_not_white(mode: str, level: float) -> None:
    grey = Image.new("F", (8, 8), level)
    if mode != "F":
        grey = grey.convert("I").convert(mode) if mode != "I" else grey.convert("I")
    assert _eight_bit(grey).convert("RGBA").getpixel((4, 4)) == (64, 64, 64, 255)


def test_a_16_bit_png_is_read_as_grey(tmp_path: Path) -> None:
    Image.new("I;16", (8, 8), 0x8000).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a fog")
    assert load_pictures(tmp_path, 8, progress=False).pictures[0, 0, 4, 4] == 128


def archive(mode: str = "w", *odd: tarfile.TarInfo, count: int = 30) -> bytes:
    """A tar of `count` captioned pictures, each followed by noise, and what is odd at its end."""
    buffer, noise = io.BytesIO(), random.Random(0)
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for i in range(count):
            for name, data in ((f"{i}.png", picture()), (f"{i}.txt", b"a disc")):
                info = tarfile.TarInfo(name)
                data += noise.randbytes(700) if name.endswith("png") else b""
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        for info in odd:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, 3 * (kind == tarfile.REGTYPE)
    return info


@pytest.mark.parametrize(
    "odd",
    [
        member("b.png", tarfile.SYMTYPE, "nowhere"),
        member("b.png", tarfile.LNKTYPE, "nowhere"),
        member("b.png", tarfile.SYMTYPE, "b.png"),
        member("."),
        member("/"),
        member(""),
    ],
)
def test_an_odd_member_of_a_shard_is_skipped(tmp_path: Path, odd: tarfile.TarInfo) -> None:
    (tmp_path / "shard-0.tar").write_bytes(archive("w", odd, count=1))
    data = load_pictures(tmp_path, 8, progress=False)
    assert len(data) == 1
    assert [f"shard-0.tar:{odd.name}: it cannot be read" in s for s in data.skipped] == [True]


def damaged(kind: str) -> bytes:
    whole = bytearray(archive())
    if kind == "header":
        whole[whole.find(b"15.png") + 1] ^= 1
    elif kind == "cut between files":
        del whole[whole.find(b"15.png") :]
    else:
        whole = bytearray(archive(f"w:{kind}"))
        middle = len(whole) // 2
        whole[middle : middle + 40] = bytes(40)
    return bytes(whole)


@pytest.mark.parametrize("kind", ["header", "cut between files", "gz", "bz2", "xz"])
def test_no_damaged_shard_passes_for_a_shorter_one(tmp_path: Path, kind: str) -> None:
    (tmp_path / "shard-000.tar").write_bytes(damaged(kind))
    with pytest.raises(DatasetError, match=r"shard-000\.tar' is no tar file, or is cut short: .+"):
        load_pictures(tmp_path, 8, progress=False)


@pytest.mark.parametrize("kind", ["", "gz", "bz2", "xz"])
def test_whole_shards_are_read_to_their_end(tmp_path: Path, kind: str) -> None:
    (tmp_path / "shard-000.tar").write_bytes(archive(f"w:{kind}"))
    assert len(load_pictures(tmp_path, 8, progress=False)) == 30


def test_a_damaged_checksum_of_a_shard_is_seen(tmp_path: Path) -> None:
    whole = bytearray(archive("w:gz"))
    whole[-6] ^= 1
    (tmp_path / "shard-000.tar").write_bytes(whole)
    with pytest.raises(DatasetError, match="CRC check failed"):
        load_pictures(tmp_path, 8, progress=False)


def test_a_tar_among_loose_pictures_does_not_stand_in_for_them(folder: Path) -> None:
    for name in ("heldout-000.tar", "backup.tar"):
        (folder / name).write_bytes(archive(count=1))
    data = load_pictures(folder, 8, progress=False)
    assert len(data) == 6
    assert [line.split(": ")[0] for line in data.skipped] == [
        str(folder / "heldout-000.tar"),
        str(folder / "backup.tar"),
    ]
    assert len(load_pictures(folder / "heldout-000.tar", 8, progress=False)) == 1


def test_other_tars_are_read_where_there_is_nothing_else(tmp_path: Path) -> None:
    for name in ("heldout-000.tar", "mine.tar"):
        (tmp_path / name).write_bytes(archive(count=2))
    (tmp_path / "sheet.png").write_bytes(picture())  # without a caption
    assert len(load_pictures(tmp_path, 8, progress=False)) == 2
    (tmp_path / "mine.tar").unlink()
    with pytest.raises(DatasetError, match=r"heldout-000\.tar: it is held out"):
        load_pictures(tmp_path, 8, progress=False)


def test_pictures_beside_shards_are_named_as_left_out(folder: Path) -> None:
    (folder / "shard-000.tar").write_bytes(archive(count=2))
    (folder / "backup.tar").write_bytes(archive(count=2))
    data = load_pictures(folder, 8, progress=False)
    assert len(data) == 2
    assert len(data.skipped) == 7
    assert all("the tar files beside it are read instead" in line for line in data.skipped)


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, None])
def test_a_shard_that_is_no_tar_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    shard = tmp_path / "shard-000.tar"
    if content is None:
        with tarfile.open(shard, "w") as tar:
            info = tarfile.TarInfo("a.png")
            info.size = 5000
            tar.addfile(info, io.BytesIO(bytes(5000)))
        content = shard.read_bytes()[:3000]
    shard.write_bytes(content)
    with pytest.raises(DatasetError, match=r"shard-000\.tar' is no tar file, or is cut short"):
        load_pictures(tmp_path, 8, progress=False)
