"""What a config asks of its losses is refused before any work, with the key and the reason."""

from __future__ import annotations

import pytest

from dmlscale.config.load import load_config
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.preflight import check_cheap


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ("{name: triplet, memory_size: 64}", r"losses\.0\.memory_size: triplet cannot use .* mined\(\)"),
        ("[{name: softmax}, {name: n_pairs, memory_size: 64}]", r"losses\.1\.memory_size: n_pairs"),
        ("{name: norm_softmax, memory_size: 64}", "for pair losses"),
        ("{name: proxy_anchor, class_sampling: 0.1}", r"losses\.0\.class_sampling: proxy_anchor cannot sample"),
        ("{name: center, class_sampling: 0.1}", "center cannot sample"),
        ("{name: circle, class_sampling: 0.1}", "for class losses"),
        ("{name: circle, memory_size: 64, class_sampling: 0.1}", r"losses\.0\.class_sampling: circle"),
        ("{name: circle, memory_start: 64}", r"losses\.0\.memory_start=64 has no effect"),
        ("{name: circle, bank_lr: 1e-2}", "circle has no bank"),
        ("{name: cosface, class_sampling: 0.1, bank_weight_decay: 0.1}", "no weight decay"),
    ],
)
def test_losses_that_cannot_are_named(losses: str, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        check_cheap(load_config("configs/quickstart.yaml", [f"losses={losses}"]))


@pytest.mark.parametrize(
    "losses",
    [
        "{name: triplet, mining: batch_hard, memory_size: 64, memory_start: 5}",
        "{name: cosface, class_sampling: 0.5, class_sampling_unbiased: false}",
        "[{name: softmax, bank_lr: 1e-2}, {name: center, weight: 0.003, bank_weight_decay: 0.1}]",
    ],
)
def test_those_that_can_pass(losses: str) -> None:
    check_cheap(load_config("configs/quickstart.yaml", [f"losses={losses}"]))
