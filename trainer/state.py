"""What a cut holds of one trainer, gathered from its parts and given back to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embedstore.errors import CorruptCheckpointError, InvalidArgumentError
from trainer.cut import FILE_NAME, Cut, read_cut, write_cut

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from trainer.catalog import Catalog
    from trainer.config import Settings
    from trainer.history import HistoryStore
    from trainer.learner import Learner
    from trainer.metrics import Metrics


class TrainerState:
    """See the module. Used by the trainer's thread alone."""

    def __init__(
        self,
        settings: Settings,
        learner: Learner,
        catalog: Catalog,
        metrics: Metrics,
        history: HistoryStore,
        rng: np.random.Generator,
    ) -> None:
        self._settings = settings
        self._learner = learner
        self._catalog = catalog
        self._metrics = metrics
        self._history = history
        self._rng = rng

    def save(self, directory: Path, positions: Mapping[str, int]) -> None:
        """Histories first: they may be ahead of the cut, never behind it."""
        self._history.flush()
        windows, totals = self._metrics.state()
        parts = {
            "dense": self._learner.dense(),
            "optimizer": self._learner.optimizer.state(),
            "catalog": self._catalog.state(),
            "metrics": windows,
        }
        arrays = {f"{part}/{name}": array for part, named in parts.items() for name, array in named.items()}
        values = {
            "model": self._settings.model.model_dump(mode="json"),
            "totals": totals,
            "random": self._rng.bit_generator.state,
        }
        write_cut(directory, Cut(positions, arrays, values))

    def load(self, directory: Path | None) -> dict[str, int] | None:
        """Go on from the directory's cut; its positions, or None when there is none.

        InvalidArgumentError when it is another model's.
        """
        cut = None if directory is None else read_cut(directory)
        if cut is None or directory is None:
            return None
        try:
            self._check_model(cut.values["model"])
            self._learner.load_dense(_part(cut.arrays, "dense"))
            self._learner.optimizer.load_state(_part(cut.arrays, "optimizer"))
            self._catalog.load_state(_part(cut.arrays, "catalog"))
            self._metrics.load_state(_part(cut.arrays, "metrics"), cut.values["totals"])
            self._rng.bit_generator.state = cut.values["random"]
        except KeyError as problem:
            raise CorruptCheckpointError(str(directory / FILE_NAME), f"lacks {problem}") from problem
        return dict(cut.positions)

    def _check_model(self, saved: Mapping[str, Any]) -> None:
        present = self._settings.model.model_dump(mode="json")
        for name in sorted(present.keys() | saved.keys()):
            if present.get(name) != saved.get(name):
                raise InvalidArgumentError(
                    f"model.{name}", f"the cut was written with {saved.get(name)!r}, this run has {present.get(name)!r}"
                )


def _part(arrays: Mapping[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    prefix = f"{part}/"
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
