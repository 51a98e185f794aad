"""A SkyPilot server plugin for machines without internet, and faster polls for tests.

The controller of managed jobs asks https://8.8.8.8 and https://1.1.1.1 before every look at a job, and without an
answer never looks: here it asks the API server instead. Private names of SkyPilot 0.14.1; nothing of the product
needs this.
"""

from __future__ import annotations

from typing import Any

from sky.server import plugins

# By memory it would start a dozen here, which keep two cores busy for half a minute, after every start of the server.
_CONTROLLERS = 2


class Offline(plugins.BasePlugin):
    def __init__(self, probe: str, status_check_gap: float, retry_gap: float) -> None:
        self._probe, self._status_check_gap, self._retry_gap = probe, status_check_gap, retry_gap

    def install(self, extension_context: Any) -> None:
        from sky.backends import backend_utils
        from sky.jobs import recovery_strategy, utils
        from sky.utils import controller_utils

        backend_utils._TEST_IP_LIST[:] = [self._probe]
        utils.JOB_STATUS_CHECK_GAP_SECONDS = self._status_check_gap
        recovery_strategy.StrategyExecutor.RETRY_INIT_GAP_SECONDS = self._retry_gap
        controller_utils.MAX_CONTROLLERS = _CONTROLLERS
