"""What a worker finds on disk: its own bundle, those of a folder, and their presets."""

from pathlib import Path

from models.bundle import read_config, save_config
from tests.models.tiny import build_tiny_bundle
from worker.catalogue import Catalogue


def found(own: Path, preset: str, folder: Path) -> dict[str, tuple[Path, str]]:
    catalogue = Catalogue(own, preset, folder)
    assert catalogue.look()
    assert not catalogue.look()
    return {name: (entry.path, entry.preset) for name, entry in catalogue.entries.items()}


def test_a_preset_is_a_model_beside_its_bundle(tmp_path: Path) -> None:
    own = build_tiny_bundle(tmp_path / "own", turbo=True)
    both = {"tiny": (own, ""), "tiny-turbo": (own, "turbo")}
    assert found(own, "", tmp_path / "models") == both
    assert found(own, "turbo", tmp_path / "models") == both


def test_bundles_of_the_folder_have_theirs(tmp_path: Path) -> None:
    own, folder = build_tiny_bundle(tmp_path / "own"), tmp_path / "models"
    other = build_tiny_bundle(folder / "other", name="other", turbo=True)
    wanted = {"tiny": (own, ""), "other": (other, ""), "other-turbo": (other, "turbo")}
    assert found(own, "", folder) == wanted


def test_a_preset_comes_and_goes_with_the_bundle(tmp_path: Path) -> None:
    own = build_tiny_bundle(tmp_path / "own", turbo=True)
    catalogue = Catalogue(own, "", tmp_path / "models")
    assert catalogue.look()
    assert [*catalogue.entries] == ["tiny", "tiny-turbo"]
    turbo = catalogue.entries["tiny-turbo"].description
    assert turbo is not None
    assert (turbo.config.default_steps, turbo.config.default_guidance_scale) == (3, 1.0)
    save_config(own, read_config(own).model_copy(update={"turbo": None}))
    assert catalogue.look()
    assert [*catalogue.entries] == ["tiny"]
