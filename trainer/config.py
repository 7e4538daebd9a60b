"""Settings of the online trainer: defaults here, then a TOML file, then ``EMBEDTRAIN_`` variables of the environment.

A nested field is ``[model] dim = 64`` in TOML and ``EMBEDTRAIN_MODEL__DIM=64`` in the environment. An unknown key or a
value out of range raises :class:`InvalidArgumentError` naming the field.
"""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from embedstore import Adagrad, MinCount, TableSpec, Uniform
from embedstore.errors import InvalidArgumentError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(_Section):
    """The network. ``length``: events of a history that it reads; ``temperature``: where the learnable one begins."""

    dim: Annotated[int, Field(ge=2, le=4096)] = 64
    layers: Annotated[int, Field(ge=1, le=64)] = 2
    heads: Annotated[int, Field(ge=1, le=64)] = 2
    length: Annotated[int, Field(ge=1, le=1024)] = 6
    temperature: Positive = 0.1
    half_lives_s: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=16)] = (600.0, 3600.0, 21600.0)


class TrainSettings(_Section):
    """One step. ``head_negatives``: the most met items, always in; ``tail_negatives``: drawn evenly from the others.

    ``share_half_life``: which of ``half_lives_s`` tells an item's share of the events (and who is in the head).
    ``positive_actions``: names of actions that are predicted (empty: all). ``refresh_rows``: rows a step pulled in turn
    to see what others have pushed.
    """

    batch_events: Annotated[int, Field(ge=1, le=65536)] = 128
    head_negatives: Annotated[int, Field(ge=0, le=1 << 20)] = 300
    tail_negatives: Annotated[int, Field(ge=0, le=1 << 20)] = 200
    dense_lr: Positive = 4e-4
    scalar_lr: Positive = 1e-2
    share_half_life: Annotated[int, Field(ge=0)] = 1
    positive_actions: tuple[str, ...] = ()
    refresh_rows: Annotated[int, Field(ge=0, le=1 << 20)] = 64
    seed: Annotated[int, Field(ge=0)] = 0


class TableSettings(_Section):
    """The three tables, which are made when the store does not have them.

    ``item_min_count``: an item gets a row with its so-many-th event; ``item_ttl_days``: and loses it after so long
    without one; ``item_rows_max``: and there are never more. None: no limit.
    """

    items: str = "items"
    actions: str = "actions"
    surfaces: str = "surfaces"
    lr: Positive = 0.1
    init_scale: Positive = 0.1
    num_chunks: Annotated[int, Field(ge=1)] = 256
    item_min_count: Annotated[int, Field(ge=1, lt=1 << 31)] = 1
    item_ttl_days: Positive | None = None
    item_rows_max: Annotated[int, Field(ge=1)] | None = None


class RunSettings(_Section):
    """The loop. Times in seconds. ``rebuild_events``: how far a lost or too short history is read back."""

    dense_set: str = "sequence_model"
    cut_interval_s: Positive = 10.0
    report_interval_s: Positive = 1.0
    poll_timeout_s: Positive = 0.2
    retry_max_s: Positive = 5.0
    rebuild_events: Annotated[int, Field(ge=0)] = 1_000_000
    users_max: Annotated[int, Field(ge=1024)] = 1 << 17
    items_max: Annotated[int, Field(ge=1024)] = 1 << 20
    threads: Annotated[int, Field(ge=1, le=1024)] = 1


class Settings(BaseSettings):
    """All settings of ``embedtrain stream``."""

    model_config = SettingsConfigDict(
        env_prefix="EMBEDTRAIN_", env_nested_delimiter="__", extra="forbid", frozen=True, protected_namespaces=()
    )

    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    tables: TableSettings = TableSettings()
    run: RunSettings = RunSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment goes over the file."""
        return env_settings, init_settings

    def table_specs(self) -> tuple[TableSpec, ...]:
        """The tables of items, actions and surfaces."""
        tables = self.tables
        items, *others = (
            TableSpec(
                name,
                dim=self.model.dim,
                optimizer=Adagrad(lr=tables.lr),
                init=Uniform(tables.init_scale, seed=self.train.seed + place),
                on_miss="init",
                num_chunks=tables.num_chunks,
            )
            for place, name in enumerate((tables.items, tables.actions, tables.surfaces))
        )
        # Even a count of 1 matters: negatives are pushed with a count of 0, and must not bring back what has gone.
        limits = tables.item_min_count > 1 or tables.item_ttl_days or tables.item_rows_max
        limited = replace(
            items,
            admission=MinCount(tables.item_min_count) if limits else None,
            ttl_s=None if tables.item_ttl_days is None else tables.item_ttl_days * 86_400,
            rows_max=tables.item_rows_max,
        )
        return limited, *others


def load_settings(path: Path | None = None, **overrides: Any) -> Settings:
    """Settings from a TOML file and the environment; ``overrides`` are sections as dicts, under both."""
    parts: dict[str, Any] = dict(overrides)
    if path is not None:
        try:
            parts |= tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as problem:
            raise InvalidArgumentError("config", f"{path}: {problem.strerror}") from problem
        except ValueError as problem:
            raise InvalidArgumentError("config", f"{path}: {problem}") from problem
    try:
        settings = Settings(**parts)
    except ValidationError as problem:
        first = problem.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise InvalidArgumentError(field, "there is no such setting") from problem
        raise InvalidArgumentError(field, f"{first['msg']}, not {first['input']!r}") from problem
    if settings.train.share_half_life >= len(settings.model.half_lives_s):
        raise InvalidArgumentError("train.share_half_life", "is past the end of model.half_lives_s")
    if settings.model.dim % settings.model.heads:
        raise InvalidArgumentError("model.heads", f"{settings.model.heads} does not divide model.dim")
    return settings
