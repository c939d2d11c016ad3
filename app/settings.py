"""Every setting of Avocat, read from `AVOCAT_*` environment variables."""

import importlib.util
from pathlib import Path
from typing import Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

import app
from app.webhooks.signing import parse_secrets
from app.webhooks.targets import Targets

LogLevel = Literal["debug", "info", "warning", "error"]


def default_bundle() -> Path:
    """The bundle that lies beside the packages."""
    return Path(app.__file__).resolve().parent.parent / "bundles" / "emoji"


class ApiKey(NamedTuple):
    """One key: the owner's name, the secret it is known by, and what it may do."""

    name: str
    secret: str
    high_priority: bool


Runtime = Literal[
    "auto",
    "eager",
    "compile",
    "onnxruntime",
    "openvino",
    "mixed-bf16",
    "openvino-bf16",
    "eager-bf16",
    "compile-fp16",
    "graphs",
    "graphs-fp16",
    "graphs-bf16",
]
Precision = Literal["auto", "float32", "float16", "bfloat16"]


class Settings(BaseSettings):
    """Settings of all parts; a field `redis_url` is read from `AVOCAT_REDIS_URL`."""

    model_config = SettingsConfigDict(
        env_prefix="AVOCAT_",
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,  # it may be a secret
    )

    host: str = Field("127.0.0.1", description="Address the API listens on")
    port: int = Field(8000, ge=0, le=65535, description="Port the API listens on")
    data_dir: Path = Field(Path("data"), description="Folder for images and the embedded Redis")
    redis_url: str | None = Field(
        None,
        repr=False,
        description="Redis to use: redis://, rediss://, unix:// or redis+sentinel://; "
        "empty: the embedded one",
    )
    storage: str = Field(
        "",
        pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9._/-]*)?)?$",
        description="Where images are kept: s3://bucket/prefix; empty: in the data folder",
    )
    s3_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^/\s]+/?$",
        description="Address of a service that speaks S3; empty: Amazon's",
    )
    s3_public_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^/\s]+/?$",
        description="Its address as clients reach it, if another",
    )
    s3_region: str | None = Field(None, description="Region of the bucket; empty: AWS_REGION")
    s3_access_key_id: str | None = Field(
        None,
        description="Access key of the bucket; empty: as Amazon's tools find one "
        "(AWS_* variables, the role of the machine or pod)",
    )
    s3_secret_access_key: SecretStr | None = Field(None, description="The secret of that key")
    s3_links: bool = Field(
        True,
        description="Clients are sent to the bucket by presigned URLs; false: the API passes "
        "the bytes on",
    )
    bundle: Path = Field(
        default_factory=default_bundle,
        description="Folder of the model bundle; empty: the one that comes with Avocat",
    )
    preset: Literal["", "turbo"] = Field(
        "",
        description="Preset of the bundle that workers draw with, as the model NAME-turbo: turbo, "
        "if the bundle has it; empty: its own defaults",
    )
    lora_dir: Path | None = Field(
        None,
        description="Folder of LoRA files (.safetensors) that jobs of imported models may name; "
        "it may change at any time; empty: none",
    )
    api_keys: SecretStr = Field(
        SecretStr(""),
        description="Comma-separated `name:secret` or `name:secret:high`; empty: open to everyone",
    )
    require_keys: bool = Field(
        False,
        description="Whether a key is needed also while there is none: set it where the keys are "
        "those of `avocat keys`",
    )
    blocklist: Path | None = Field(
        None,
        description="File of words and phrases that no prompt may hold, one a line, read again "
        "when it changes; empty: none",
    )
    moderation_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s]+$",
        description="Endpoint that is asked about each prompt, of the form of OpenAI's moderation "
        "API, as https://host/v1/moderations; empty: none",
    )
    moderation_token: SecretStr | None = Field(
        None, description="Bearer token that is sent to the moderation endpoint"
    )
    moderation_timeout_s: float = Field(
        3, gt=0, le=60, description="Seconds that the moderation endpoint has for its answer"
    )
    moderation_fail_open: bool = Field(
        False,
        description="Whether prompts are drawn about which it gave no answer; else 503",
    )
    audit_log: Path | None = Field(
        None,
        description="File of the audit log: who submitted, cancelled and fetched what, a JSON "
        "object a line; empty: none",
    )
    audit_prompts: bool = Field(False, description="Whether the audit log holds prompts")
    cors_origins: str = Field(
        "",
        pattern=r"^(\*|(https?://[^/\s,*]+(,\s*https?://[^/\s,*]+)*)?)$",
        description="Origins whose pages may call the API, comma-separated, as "
        "https://app.example.com, or * for all; empty: this server's own only",
    )
    allow_anonymous: bool = Field(
        False, description="Whether to listen on more than this machine although there are no keys"
    )
    signing_key: SecretStr | None = Field(
        None, description="Key of image URL signatures; empty: drawn once and kept in Redis"
    )
    storage_quota_bytes: int = Field(
        0,
        ge=0,
        description="Bytes that all images may take; jobs that might need more are refused with "
        "503 until some have expired; 0: no limit",
    )
    image_url_ttl_s: int = Field(
        3600, ge=1, description="Seconds for which a signed image URL is valid"
    )
    webhook_secrets: SecretStr = Field(
        SecretStr(""),
        description="Comma-separated `whsec_…` keys that sign webhooks, all of them each call; "
        "empty: one drawn once and kept in Redis, shown by `avocat webhook-secret`",
    )
    webhook_allow: str = Field(
        "",
        description="Hosts, addresses and networks that webhooks may call although they are not "
        "public or without TLS, comma-separated",
    )
    webhook_retry_s: float = Field(
        5,
        gt=0,
        description="Seconds before a webhook is called again; three times as many each time",
    )
    retention_s: int = Field(
        86400, ge=1, description="Seconds for which a finished job and its images are kept"
    )
    idempotency_ttl_s: int = Field(
        86400, ge=1, description="Seconds for which an Idempotency-Key is remembered"
    )
    queue_cap: int = Field(1000, ge=1, description="Jobs waiting in all queues before 503")
    max_active_jobs_per_key: int = Field(
        256, ge=1, description="Jobs of one API key queued or running before 429"
    )
    rate_limit_per_minute: int = Field(
        0, ge=0, description="Submissions of one API key in any 60 seconds before 429; 0: no limit"
    )
    max_body_bytes: int = Field(
        65536, ge=1024, description="Largest request body in bytes, pictures to start from apart"
    )
    max_input_bytes: int = Field(
        8388608, ge=1024, description="Largest file in bytes of a picture that a job starts from"
    )
    sync_timeout_s: int = Field(
        300, ge=1, description="Seconds a call of /v1/images/generations waits before 504"
    )
    job_timeout_s: int = Field(600, ge=1, description="Seconds after which a running job fails")
    max_attempts: int = Field(
        3, ge=1, description="Times a job is taken again when its worker is lost, first included"
    )
    patience_s: int = Field(
        120,
        ge=1,
        description="Seconds after which a job that waits behind higher priorities makes its queue "
        "have every second turn",
    )
    model_memory_mb: int = Field(
        0,
        ge=0,
        description="Megabytes of weights that a worker keeps loaded at most, at least its "
        "bundle's; 0: as many as its device has room for",
    )
    model_patience_s: float = Field(
        30,
        ge=0,
        description="Seconds after which a job of a model that no worker has loaded makes one "
        "finish what it draws and load it, although jobs of others wait",
    )
    storage_patience_s: float = Field(
        60,
        ge=0,
        description="Seconds for which a worker keeps a drawn picture that cannot be stored, and "
        "takes no further job, before it costs the job an attempt",
    )
    lease_s: int = Field(
        12,
        ge=3,
        description="Seconds after which a silent worker counts as lost; its jobs begin again "
        "within a second of it",
    )
    slots: int = Field(
        0,
        ge=0,
        description="Rows a worker has in flight, those with the least work left first; a picture "
        "is one row. 0: as many as help on its device",
    )
    micro_batch: int = Field(
        0,
        ge=0,
        description="Rows of the network's fixed batch shape; 0: 1 on CPU, on a GPU as many as "
        "cost a lone row little (measured at the first start)",
    )
    exact: bool = Field(
        True,
        description="Each picture has the same bytes whoever its neighbours are; false: the "
        "batch shape varies, and so do last bits",
    )
    threads: int = Field(
        0, ge=0, le=1024, description="Threads of the network on CPU; 0: all cores, or the quota"
    )
    runtime: Runtime = Field(
        "auto",
        description="What executes the network: auto (the fastest here that paints the same "
        "pictures, measured at the first start), eager, compile, onnxruntime, openvino or "
        "mixed-bf16 (bfloat16 where that shows least; the extra `openvino`), on a GPU graphs, "
        "graphs-fp16 or compile-fp16; openvino-bf16, eager-bf16, graphs-bf16: in bfloat16, other "
        "pictures",
    )
    precision: Precision = Field(
        "auto",
        description="Number format of imported models: float32, float16 or bfloat16; auto: float16 "
        "on a GPU, as that family is used to, and float32 on CPU",
    )
    device: str = Field(
        "auto",
        description="Device of the worker: auto, cpu, cuda or cuda:N; several with commas are "
        "dealt to the workers of `avocat serve` by turns, auto deals all GPUs",
    )
    workers: int = Field(
        1, ge=1, le=64, description="Workers that `avocat serve` starts; on CPU they share threads"
    )
    drain_grace_s: int = Field(
        30,
        ge=0,
        description="Seconds a stopping worker has to finish its rows, and a stopping API the "
        "calls that wait for pictures",
    )
    drain_delay_s: float = Field(
        0,
        ge=0,
        description="Seconds a stopping API takes new requests while /readyz is 503 already, "
        "until a gateway has noticed",
    )
    metrics_token: SecretStr | None = Field(
        None,
        description="Bearer token that GET /metrics needs; empty: none, as it tells counts only",
    )
    worker_metrics_host: str = Field(
        "127.0.0.1", description="Address of the worker's own /metrics"
    )
    worker_metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port of the worker's own /metrics; empty: none (under `avocat serve` the "
        "API's tells of the worker, too)",
    )
    otlp_endpoint: str | None = Field(
        None,
        description="Collector that spans are sent to by OTLP over HTTP, as http://host:4318 "
        "(needs the extra `tracing`); empty: no tracing",
    )
    log_level: LogLevel = Field("info", description="Least severe level that is logged")
    log_json: bool = Field(False, description="Logs as JSON lines instead of text")

    @field_validator(
        *("redis_url", "signing_key", "metrics_token", "otlp_endpoint", "worker_metrics_port"),
        *("audit_log", "blocklist", "moderation_url", "moderation_token", "lora_dir"),
        *("s3_region", "s3_access_key_id", "s3_secret_access_key", "s3_endpoint"),
        "s3_public_endpoint",
        mode="before",
    )
    @classmethod
    def _blank_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("bundle", mode="before")
    @classmethod
    def _blank_is_default(cls, value: object) -> object:
        return default_bundle() if value == "" else value

    @field_validator("otlp_endpoint")
    @classmethod
    def _spans_can_be_sent(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname:
            raise ValueError(f"{value!r} should be a URL as http://host:4318")
        if importlib.util.find_spec("opentelemetry.exporter") is None:
            raise ValueError("tracing needs OpenTelemetry: pip install 'avocat[tracing]'")
        return value

    @model_validator(mode="after")
    def _keys_are_readable(self) -> Self:
        if (self.s3_access_key_id is None) is not (self.s3_secret_access_key is None):
            raise ValueError("s3_access_key_id and s3_secret_access_key go together: set both")
        parse_api_keys(self.api_keys.get_secret_value())
        parse_secrets(self.webhook_secrets.get_secret_value())
        Targets.parse(self.webhook_allow)
        return self

    @property
    def resolved_redis_url(self) -> str:
        """`redis_url`, or the embedded Redis' socket in the data folder."""
        if self.redis_url is not None:
            return self.redis_url
        return f"unix://{self.data_dir.resolve() / 'redis' / 'redis.sock'}"

    @property
    def images_dir(self) -> Path:
        """The folder that `FolderStorage` keeps images in."""
        return self.data_dir.resolve() / "images"

    @property
    def models_dir(self) -> Path:
        """The folder that `avocat import` writes to: a folder per model, named as it."""
        return self.data_dir.resolve() / "models"

    @property
    def runtimes_dir(self) -> Path:
        """The folder that workers keep compiled networks and their measured speeds in."""
        return self.data_dir.resolve() / "runtimes"

    @property
    def webhook_keys(self) -> tuple[bytes, ...]:
        """The keys of webhook signatures; none means that one is drawn."""
        return parse_secrets(self.webhook_secrets.get_secret_value())

    @property
    def keys(self) -> tuple[ApiKey, ...]:
        """The API keys; none means the service is open."""
        return parse_api_keys(self.api_keys.get_secret_value())


def parse_api_keys(text: str) -> tuple[ApiKey, ...]:
    """Read `name:secret[:high],…`.

    Raises:
        ValueError: an entry has another form or a name comes twice; secrets are not quoted.
    """
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    keys = tuple(_parse_api_key(entry, at) for at, entry in enumerate(entries, start=1))
    secrets = [key.secret for key in keys]
    if len(set(secrets)) != len(secrets):
        raise ValueError("api_keys: two entries have the same secret; each key needs its own")
    return keys


def _parse_api_key(entry: str, at: int) -> ApiKey:
    match entry.split(":"):
        case [name, secret] if name and secret:
            return ApiKey(name, secret, high_priority=False)
        case [name, secret, "high"] if name and secret:
            return ApiKey(name, secret, high_priority=True)
    raise ValueError(f"api_keys: entry {at} should be name:secret or name:secret:high")
