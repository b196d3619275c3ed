"""nbval waits as long as a chapter takes: its limits only end what hangs."""

import pytest

HANG_SECONDS = 1800


def pytest_configure(config: pytest.Config) -> None:
    """Give a kernel as long to start as a cell to run."""
    config.option.nbval_kernel_startup_timeout = HANG_SECONDS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Wait for a cell's output as well, for which nbval has no option: it gives 5 seconds."""
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = HANG_SECONDS
