"""One run of the demo: what is started in which order, and when it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from smartgrid.demo.broker import BrokerCommand, broker_command, redis_command
from smartgrid.demo.description import FILE, description, for_people, write_description
from smartgrid.demo.fleet import (
    DEVICES_BROKER,
    DEVICES_USER,
    SITES,
    SWITCHBOARD,
    port_names,
    simulated_fleet,
)
from smartgrid.demo.options import ROOT, DemoError, DemoOptions
from smartgrid.demo.readiness import (
    NodeWatch,
    accepts_connections,
    http_json,
    http_status,
    nodes_are_known,
    redis_answers,
    until,
)
from smartgrid.demo.services import AUDIENCE, SERVICES, DemoSettings, process_environment
from smartgrid.demo.state import (
    demo_ports,
    demo_secrets,
    free_port,
    port_is_free,
    read_json,
    write_private,
)
from smartgrid.demo.supervisor import ProcessFailedError, ProcessSpec, Supervisor

SERVICE_START_S = 20.0
READY_S = 120.0
NODE_IDS = tuple(site.node_id for site in SITES)
HTTP_OK = 200

EXIT_OK, EXIT_FAILED = 0, 1


def say(text: str) -> None:
    print(text, flush=True)


class Demo:
    """One run of the demo, from its first process to the end of its last."""

    def __init__(self, *, options: DemoOptions) -> None:
        self.options = options
        self.var = options.var
        self.began_s = time.monotonic()
        # A description of a demo that no longer runs would mislead programs.
        (self.var / FILE).unlink(missing_ok=True)
        port = options.port or free_port()
        if not port_is_free(port):
            raise DemoError(
                f"port {port} is taken by another program. End that one, or choose another port:"
                f" SGM_PORT={port + 1} make demo"
            )
        names = ("mqtt", "redis", "events", DEVICES_BROKER, SWITCHBOARD, *port_names())
        # With some hundred ports of devices, one that happens to be the web's is a matter of weeks.
        ports = demo_ports(self.var, names=names, taken=frozenset({port}))
        secrets = demo_secrets(self.var, node_names=tuple(site.node_name for site in SITES))
        self.settings = DemoSettings(
            var=self.var, port=port, ports=ports, secrets=secrets, split_connections=False
        )
        self.broker: BrokerCommand = broker_command(
            directory=self.var / "broker",
            port=ports["mqtt"],
            passwords=self.settings.mqtt_passwords(),
            choice=options.broker,
        )
        # iotcore cannot switch Nagle's algorithm off: there both sides use two connections, one each way.
        self.settings = DemoSettings(
            var=self.var,
            port=port,
            ports=ports,
            secrets=secrets,
            split_connections=self.broker.kind == "iotcore",
        )
        self.devices_broker: BrokerCommand = broker_command(
            directory=self.var / "devices-broker",
            port=ports[DEVICES_BROKER],
            passwords={DEVICES_USER: secrets["mqtt_devices"]},
            choice=options.broker,
            for_devices=True,
        )
        self.protocols: dict[str, str] = {}
        self.ready = False
        self.supervisor = Supervisor(
            log_dir=self.var / "log", working_dir=ROOT, say=say, changed=self._describe_if_ready
        )

    async def run(self) -> int:
        """Run until a signal says to end, and end every process; the exit code."""
        ending = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal, number, ending)
        run = asyncio.create_task(self._run(), name="demo")
        wait = asyncio.create_task(ending.wait(), name="signal")
        try:
            await asyncio.wait({run, wait}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            failure = await _ended(run)
            wait.cancel()
            (self.var / FILE).unlink(missing_ok=True)
            await self.supervisor.stop()
        if failure is not None:
            print(f"demo: {failure}", file=sys.stderr)
            return EXIT_FAILED
        say("All processes have ended.")
        return EXIT_OK

    def _on_signal(self, number: signal.Signals, ending: asyncio.Event) -> None:
        if ending.is_set():
            self.supervisor.hurry()
        else:
            say(f"\nEnding on {number.name} ... (once more: at once)")
            ending.set()

    async def _run(self) -> None:
        _set_aside_logs(self.var / "log")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.supervisor.watch(), name="watch")
            tasks.create_task(self._bring_up(), name="bring up")

    async def _bring_up(self) -> None:
        settings = self.settings
        await self._start_services()
        # A fresh database takes longer than all else, and one core of those there are.
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._start_devices(), name="devices")
            tasks.create_task(self._seed(), name="seed")
        self.protocols = read_json(self.var / "seeded.json")["protocols"]
        nodes = NodeWatch(
            port=settings.ports["mqtt"],
            username="central-inbox",
            password=settings.secrets["mqtt_central-inbox"],
        )
        async with asyncio.TaskGroup() as tasks:
            listening = tasks.create_task(nodes.listen(), name="listen to nodes")
            for spec in (
                settings.web(),
                settings.events(),
                settings.worker(),
                settings.inbox(),
                settings.beat(),
            ):
                self.supervisor.start(spec)
            for site in SITES:
                self.supervisor.start(settings.edge_node(site))
                self.supervisor.start(settings.edge_guard(site))
            await self._until_ready(nodes)
            listening.cancel()
        self.ready = True
        content = self._describe()
        say(for_people(content, var=self.var, time_limit_s=self.options.time_limit_s))
        say(f"Ready after {time.monotonic() - self.began_s:.1f} s.")

    async def _seed(self) -> None:
        await self.supervisor.run_once(
            self.settings.seeding(time_limit_s=self.options.time_limit_s, fleet=self.options.fleet)
        )

    async def _start_services(self) -> None:
        """Brokers and Redis; returns once all of them answer."""
        settings, ports = self.settings, self.settings.ports
        for site in SITES:
            write_private(settings.password_file(site), settings.secrets[f"mqtt_{site.node_name}"])
        (self.var / "database").mkdir(parents=True, exist_ok=True)
        redis = redis_command(
            directory=self.var / "redis",
            port=ports["redis"],
            password=settings.secrets["redis_password"],
            choice=self.options.redis,
        )
        for name, argv in (
            ("broker", self.broker.argv),
            ("devices-broker", self.devices_broker.argv),
            ("redis", redis),
        ):
            self.supervisor.start(
                ProcessSpec(name=name, argv=argv, env=process_environment(), stage=SERVICES)
            )
        isolation = "" if self.broker.isolates_nodes else ", no isolation between nodes"
        say(f"Broker: {self.broker.kind}{isolation}.")
        await self._until(lambda: accepts_connections(ports["mqtt"]), within_s=SERVICE_START_S, what="broker")
        await self._until(
            lambda: accepts_connections(ports[DEVICES_BROKER]),
            within_s=SERVICE_START_S,
            what="devices-broker",
        )
        await self._until(lambda: redis_answers(settings.redis_url), within_s=SERVICE_START_S, what="redis")

    async def _start_devices(self) -> None:
        """The simulated devices; returns once each accepts connections."""
        settings, ports = self.settings, self.settings.ports
        fleet = simulated_fleet(ports, password=settings.secrets["mqtt_devices"])
        write_private(self.var / "fleet.json", json.dumps(fleet, indent=2))
        self.supervisor.start(settings.simulators(record_writes=self.options.record_writes))
        await self._until(
            lambda: _all_accept_connections([ports[name] for name in (SWITCHBOARD, *port_names())]),
            within_s=SERVICE_START_S,
            what="simulators",
        )

    async def _until(self, probe: Callable[[], Awaitable[bool]], *, within_s: float, what: str) -> None:
        try:
            await until(probe, within_s=within_s, what=f"{what} did not answer")
        except DemoError as error:
            raise DemoError(
                f"{error}. The end of {self.supervisor.log_path(what)}:\n{self.supervisor.log_tail(what)}"
            ) from error

    async def _until_ready(self, nodes: NodeWatch) -> None:
        settings = self.settings

        async def site_answers() -> bool:
            return await http_status(f"{settings.base_url}/readyz") == HTTP_OK

        async def events_are_told() -> bool:
            return await http_status(f"{settings.events_url}/readyz") == HTTP_OK

        async def nodes_run() -> bool:
            return not nodes.missing(NODE_IDS)

        async def nodes_are_healthy() -> bool:
            return await nodes_are_known(settings.redis_url, node_ids=NODE_IDS)

        await self._until(site_answers, within_s=READY_S, what="web")
        await self._until(events_are_told, within_s=READY_S, what="events")
        await self._ping_with_real_credentials()
        try:
            await until(nodes_run, within_s=READY_S, what="not all nodes run their configuration")
        except DemoError as error:
            raise DemoError(f"{error}: {nodes.missing(NODE_IDS)}; see {self.var / 'log'}") from error
        await self._until(nodes_are_healthy, within_s=READY_S, what="inbox")

    async def _ping_with_real_credentials(self) -> None:
        """Go through the door as a client does: a token of the issuer, then the API with both credentials."""
        settings = self.settings
        status, answer = await http_json(
            f"{settings.base_url}/oauth/token",
            method="POST",
            body={
                "audience": AUDIENCE,
                "grant_type": "client_credentials",
                "client_id": settings.secrets["client_id"],
                "client_secret": settings.secrets["client_secret"],
            },
        )
        if status != HTTP_OK:
            raise DemoError(f"the token issuer answered {status}: {answer}")
        headers = {"Authorization": f"Bearer {answer['access_token']}"}
        for token in ("root_token", "site_token"):
            status, pong = await http_json(
                f"{settings.base_url}/v1/ping",
                headers={**headers, "X-Management-Token": settings.secrets[token]},
            )
            if (status, pong) != (HTTP_OK, {"ping": "pong!"}):
                raise DemoError(f"/v1/ping answered {status} to the {token}: {pong}")

    def _describe(self) -> dict[str, Any]:
        content = description(
            self.settings,
            mqtt_isolation=self.broker.isolates_nodes,
            pids=self.supervisor.pids(),
            protocols=self.protocols,
        )
        write_description(self.var, content)
        return content

    def _describe_if_ready(self) -> None:
        if self.ready:
            self._describe()


async def _ended(run: asyncio.Task[None]) -> str | None:
    """End the demo's task where it still runs; why it failed, None where it did not."""
    run.cancel()
    try:
        await run
    except asyncio.CancelledError:
        pass
    except BaseExceptionGroup as group:
        expected, others = group.split((DemoError, ProcessFailedError))
        if others is not None:
            raise others from None
        if expected is not None:
            return "; ".join(str(error) for error in _leaves(expected))
    return None


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found


async def _all_accept_connections(ports: list[int]) -> bool:
    return all([await accepts_connections(port) for port in ports])


def _set_aside_logs(directory: Path) -> None:
    """Let every start write logs of its own, and keep those of the one before."""
    for log in directory.glob("*.log"):
        with contextlib.suppress(OSError):
            log.replace(log.with_suffix(".log.1"))
