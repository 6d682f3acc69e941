"""The processes of a run, one a device."""

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from tandem.errors import ResourceError
from tandem.observe import get_logger
from tandem.runtime.ray.cluster import START_WAIT_S, Reserved, in_bundle
from tandem.runtime.ray.watch import Watch
from tandem.runtime.ray.worker import Whereabouts, Worker

log = get_logger("run")


class Crew:
    """Owns the processes; they end with it."""

    def __init__(self, reserved: Reserved, watch: Watch, env: Mapping[str, str]) -> None:
        """`env` is the environment of processes that train."""
        self._reserved, self._watch, self._env = reserved, watch, dict(env)
        self._handles: dict[str, Any] = {}
        self._devices: dict[str, int] = {}
        self._begun: set[str] = set()  # nobody has waited for these yet
        self.where: dict[str, Whereabouts] = {}

    def begin(self, devices: Mapping[str, int], *, trains: bool) -> None:
        """Has processes by these names start on these devices; `start` waits for them later."""
        self._begun |= devices.keys()
        for name, device in devices.items():
            bundle = self._reserved.bundles[device]
            env = self._env if trains else {}
            self._devices[name] = device
            self._handles[name] = Worker.options(  # type: ignore[attr-defined]
                num_cpus=self._reserved.bundle["CPU"],
                num_gpus=self._reserved.bundle.get("GPU", 0),
                runtime_env={"env_vars": env} if env else None,
                **in_bundle(self._reserved.group, bundle),
            ).remote(name)

    def start(self, devices: Mapping[str, int], *, trains: bool) -> list[Any]:
        """Handles of new processes by these names on these devices, once all of them answer.

        The log says where they are. Raises ResourceError naming one that does not.
        """
        others = {name: devices[name] for name in devices if name not in self._begun}
        self.begin(others, trains=trains)
        self._begun -= devices.keys()
        refs = {name: self._handles[name].where.remote() for name in devices}
        for name, ref in refs.items():
            try:
                self.where[name] = ray.get(ref, timeout=START_WAIT_S)
            except (GetTimeoutError, RayActorError) as error:
                raise ResourceError(
                    f"the process of {name} did not start within {START_WAIT_S:.0f} s ({error}); "
                    "is its host still there, and is tandem installed on it? Ray's logs say more"
                ) from error
            self._watch.add(name, self._handles[name], self.where[name], may_end=not trains)
            log.info("%s on %s", name, self.where[name])
        return [self._handles[name] for name in devices]

    def replace(self, names: Sequence[str]) -> list[Any]:
        """The handles of others on the devices of processes that are no good any more."""
        for name in names:
            self._watch.remove(name)
            ray.kill(self._handles[name])
        return self.start({name: self._devices[name] for name in names}, trains=False)

    def close(self) -> None:
        """Ends every process, those first that follow another."""
        for handle in reversed(self._handles.values()):
            ray.kill(handle)
