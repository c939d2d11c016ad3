"""The storage that the settings name."""

from app.settings import Settings
from app.storage.base import ImageStorage, StorageError
from app.storage.folder import FolderStorage

__all__ = ["open_storage"]


def open_storage(settings: Settings, *, patience_s: float) -> ImageStorage:
    """A bucket where `AVOCAT_STORAGE` names one, else the folder of images.

    `patience_s`: seconds for which a service that fails is asked again.

    Raises:
        StorageError: what speaks S3 is not installed.
    """
    if not settings.storage:
        return FolderStorage(settings.images_dir)
    try:
        from app.storage.s3 import S3Storage  # an extra: most have no bucket
    except ModuleNotFoundError:
        raise StorageError(
            f"AVOCAT_STORAGE={settings.storage} needs what is not installed: "
            "pip install 'avocat[s3]'"
        ) from None
    secret = settings.s3_secret_access_key
    config = {
        "region": settings.s3_region,
        "access_key_id": settings.s3_access_key_id,
        "secret_access_key": secret.get_secret_value() if secret is not None else None,
    }
    return S3Storage(
        settings.storage,
        endpoint=settings.s3_endpoint,
        public_endpoint=settings.s3_public_endpoint,
        config={name: value for name, value in config.items() if value},
        links=settings.s3_links,
        patience_s=patience_s,
    )
