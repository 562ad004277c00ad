from pathlib import Path

from matplotlib.figure import Figure

from dmlscale.tracking.mlflow import MlflowTracker
from dmlscale.tracking.tracker import NullTracker, Tracker


def test_null_tracker_takes_every_verb_and_records_nothing() -> None:
    tracker: Tracker = NullTracker()
    tracker.log_params({"a": 1})
    tracker.log_metrics({"a": 1.0}, 0)
    tracker.log_artifact(Path("absent"))
    tracker.log_figure(Figure(), "a.png")
    tracker.log_text("a", "a.txt")
    tracker.set_tags({"a": "b"})
    assert tracker.finish("FAILED", "why") == 0
    assert tracker.run_id == tracker.url == ""


def test_every_tracker_has_the_verbs_of_the_protocol() -> None:
    verbs = {name for name in vars(Tracker) if not name.startswith("_")} - {"run_id", "url"}
    for kind in (NullTracker, MlflowTracker):
        assert all(callable(getattr(kind, verb)) for verb in verbs)
