"""Listeners that write an audit's progress to TensorBoard or MLflow: `with events.listening(logger): audit(...)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparring.core.errors import MissingDependencyError
from sparring.core.events import Event
from sparring.evaluation.progress import AuditEnded, AuditStarted, CheckFinished, UnitFinished


def measures(event: UnitFinished) -> dict[str, float]:
    """What the loggers write after each unit."""
    seconds = max(event.seconds, 1e-9)
    return {
        "robust_accuracy": event.standing / max(1, event.seen),
        "robust_accuracy_lo": event.interval.lo,
        "robust_accuracy_hi": event.interval.hi,
        "standing": float(event.standing),
        "units_done": float(event.done),
        "passes_per_second": (event.forwards + event.backwards) / seconds,
        f"broken_by/{event.label}": float(event.broke),
    }


class TensorBoardLogger:
    """Writes scalars, one point per finished unit.

    Args:
        folder: TensorBoard's log folder.

    Raises:
        MissingDependencyError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as cause:
            raise MissingDependencyError.extra("tensorboard", "loggers", "logging to TensorBoard", cause) from cause
        self._writer: Any = SummaryWriter(str(folder))

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, UnitFinished):
            for name, value in measures(event).items():
                self._writer.add_scalar(f"audit/{name}", value, event.done)
        elif isinstance(event, CheckFinished) and event.finding.measured is not None:
            self._writer.add_scalar(f"checks/{event.finding.name}", event.finding.measured, 0)
        elif isinstance(event, AuditEnded):
            self._writer.close()


class MLflowLogger:
    """Writes metrics to the active MLflow run, or to one that it begins and ends.

    Args:
        experiment: the experiment's name; None takes the active one.

    Raises:
        MissingDependencyError: MLflow is not installed.
    """

    def __init__(self, experiment: str | None = None) -> None:
        try:
            import mlflow
        except ImportError as cause:
            raise MissingDependencyError.extra("mlflow", "loggers", "logging to MLflow", cause) from cause
        self._mlflow = mlflow
        if experiment is not None:
            mlflow.set_experiment(experiment)
        self._own = mlflow.active_run() is None

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if isinstance(event, AuditStarted):
            if self._own:
                self._mlflow.start_run(run_name=Path(event.folder).name)
            self._mlflow.log_params({"samples": event.samples, "attacks": ", ".join(event.labels)})
        elif isinstance(event, UnitFinished):
            self._mlflow.log_metrics(measures(event), step=event.done)
        elif isinstance(event, CheckFinished) and event.finding.measured is not None:
            self._mlflow.log_metric(f"checks/{event.finding.name}", event.finding.measured)
        elif isinstance(event, AuditEnded) and self._own:
            self._mlflow.end_run("FINISHED" if event.how == "finished" else "KILLED")
