"""What happens to a world: each trouble begins, lasts, and undoes itself. Troubles of different things overlap."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import nats.errors

from chaos.proxy import Proxy
from chaos.servers import fill_disk
from chaos.stream_troubles import StreamTroubles
from chaos.world import ACK_WAIT_S, Replica, World, killed
from lab import SERVER, NatsServer
from task_bridge.domain.subjects import CONSUMER
from task_bridge.simulator import faults
from task_bridge.simulator.faults import Effect

CLOCKS_S = (-3_600.0, -60.0, 0.0, 0.0, 60.0, 3_600.0)
"""How far the clock of a bridge's host may be off."""
Trouble = Callable[[], Awaitable[None]]
LONGER_THAN_ACK_WAIT_S = (ACK_WAIT_S + 0.5, ACK_WAIT_S + 2.5)


class Troubles:
    """All troubles of one round. `told`: what happened when, for who wants to understand a violation."""

    def __init__(self, world: World, chance: random.Random, began: float, *, is_followed: bool = False) -> None:
        self.told: list[str] = []
        self._is_followed = is_followed
        self._world = world
        self._chance = chance
        self._began = began
        self._nats = asyncio.Lock()
        self._vcenter = asyncio.Lock()
        self._streams = StreamTroubles(world, chance, self._tell, self._nats)
        self._gone = 0
        # When many vanish together nothing ends for ten minutes, so a round has either a few that are gone for
        # good, or all of them hidden for a while.
        self.forgets = chance.random() < 0.5

    def drawn(self, count: int) -> list[Trouble]:
        """As many troubles as asked for, of those that this world can have."""
        kinds = list(self._kinds().values())
        return [self._chance.choice(self._chance.choice(kinds)) for _ in range(count)]

    def named(self, name: str) -> Trouble:
        """One trouble by its name. Raises KeyError if this world can't have it."""
        return {one.__name__: one for kind in self._kinds().values() for one in kind}[name]

    def _kinds(self) -> dict[str, list[Trouble]]:
        servers, streams = self._world.servers, self._streams
        kinds: dict[str, list[Trouble]] = {
            "bridge": [self.kill_bridge, self.freeze_bridge, self.freeze_bridge, self.term_bridge],
            "link": [self.stall_link, self.cut_link, self.swallow_acks, self.swallow_acks],
            "bad link": [self.silence_link, self.delay_link, self.silence_vcenter, self.delay_vcenter],
            "vcenter": [self.outage, self.wipe_sessions, self.forget if self.forgets else self.hide_all],
            "server": [self.kill_nats, self.nats_away, self.freeze_nats],
            "events": [streams.purge_events, streams.cap_events, streams.delete_events],
            "queues": [streams.purge_queue, streams.cap_queue, streams.delete_queue, streams.delete_consumer],
        }
        if self._is_followed:
            # A follow remembers by its events, and a task that vCenter doesn't show can't be found.
            kinds["vcenter"] = [self.outage, self.wipe_sessions, self.restart_vcenter]
            del kinds["events"], kinds["queues"]
        if servers.replicas > 1:
            kinds["server"] += [self.kill_leader, self.kill_leader]
        if servers.disks:
            kinds["server"] += [self.fill_a_disk]
        if servers.outdated:
            kinds["upgrade"] = [self.upgrade_nats]
        if any(replica.clock for replica in self._world.replicas):
            kinds["clock"] = [self.step_clock]
        return kinds

    def _tell(self, what: str) -> None:
        self.told.append(f"{time.time() - self._began:6.2f} s  {what}")

    async def _wait(self, least_s: float, most_s: float) -> None:
        await asyncio.sleep(self._chance.uniform(least_s, most_s))

    def _idle(self) -> Replica | None:
        idle = [one for one in self._world.replicas if not one.busy.locked() and one.process.running]
        return self._chance.choice(idle) if idle else None

    # Bridges

    async def kill_bridge(self) -> None:
        if replica := self._idle():
            async with replica.busy:
                self._tell(f"kill -9 {replica.name}")
                await killed(self._world, replica)
                await self._wait(0, 3)
                await replica.process.start()
                self._tell(f"start {replica.name}")

    async def freeze_bridge(self) -> None:
        """The owner sleeps longer than its ownership lasts, and wakes up believing in it."""
        if replica := self._idle():
            async with replica.busy:
                self._tell(f"stop {replica.name}")
                replica.process.send(signal.SIGSTOP)
                await self._wait(*LONGER_THAN_ACK_WAIT_S)
                replica.process.send(signal.SIGCONT)
                self._tell(f"continue {replica.name}")

    async def term_bridge(self) -> None:
        if (replica := self._idle()) and replica.process.hears_signals:
            async with replica.busy:
                self._tell(told := f"SIGTERM {replica.name}")
                self._world.book.codes[told] = await killed(self._world, replica, signal.SIGTERM)
                await self._wait(0, 2)
                await replica.process.start()
                self._tell(f"start {replica.name}")

    # The way to NATS

    async def stall_link(self) -> None:
        replica = self._chance.choice(self._world.replicas)
        self._tell(f"stall the link of {replica.name}")
        replica.proxy.stall()
        await self._wait(0.5, 5)
        replica.proxy.resume()
        self._tell(f"resume the link of {replica.name}")

    async def cut_link(self) -> None:
        replica = self._chance.choice(self._world.replicas)
        self._tell(f"cut the link of {replica.name}")
        replica.proxy.cut()

    async def swallow_acks(self) -> None:
        replica, names = self._chance.choice(self._world.replicas), self._world.names
        stream = self._chance.choice([names.events_stream, names.events_stream, names.watches_stream])
        count = self._chance.randint(1, 5)
        self._tell(f"swallow {count} confirmations of {stream} on the way to {replica.name}")
        replica.proxy.swallow(stream, count)

    async def silence_link(self) -> None:
        """Its connections are half open: accepted or even served until now, and dead."""
        replica = self._chance.choice(self._world.replicas)
        await self._silence(replica.proxy, f"the link of {replica.name}")

    async def delay_link(self) -> None:
        replica = self._chance.choice(self._world.replicas)
        await self._delay(replica.proxy, f"the link of {replica.name}")

    async def _silence(self, proxy: Proxy, which: str) -> None:
        self._tell(f"silence {which}")
        proxy.fall_silent()
        await self._wait(0.5, 5)
        proxy.answer_again()
        self._tell(f"{which} answers again")

    async def _delay(self, proxy: Proxy, which: str) -> None:
        proxy.delay_s = self._chance.uniform(0.05, 0.6)
        self._tell(f"delay {which} by {proxy.delay_s:.2f} s")
        await self._wait(1, 5)
        proxy.delay_s = 0.0
        self._tell(f"{which} is quick again")

    # Clocks

    async def step_clock(self) -> None:
        if replica := self._idle():
            off_s = self._chance.choice(CLOCKS_S)
            self._tell(f"the clock of {replica.name}'s host is {off_s:+.0f} s off")
            assert replica.clock is not None
            replica.clock.step(off_s)

    # NATS

    async def kill_nats(self) -> None:
        await self._without(self._chance.choice(self._world.servers.all), (0.05, 1.0))

    async def kill_leader(self) -> None:
        await self._without(await self._leader(), (0.05, 3.0))

    async def nats_away(self) -> None:
        """All servers are gone for longer than `ack_wait`."""
        async with self._nats:
            self._tell("all nats-servers away")
            self._world.book.heard_all = False
            self._world.servers.stop()
            await self._wait(*LONGER_THAN_ACK_WAIT_S)
            self._world.servers.start()
            self._tell("all nats-servers back")

    async def freeze_nats(self) -> None:
        async with self._nats:
            server = self._chance.choice(self._world.servers.all)
            self._tell("stop a nats-server")
            self._world.book.heard_all = False
            server.send(signal.SIGSTOP)
            await self._wait(0.5, 4)
            server.send(signal.SIGCONT)
            self._tell("continue the nats-server")

    async def _without(self, server: NatsServer, for_s: tuple[float, float], number: int = signal.SIGKILL) -> None:
        async with self._nats:
            await self._restart(server, for_s, number)

    async def _restart(self, server: NatsServer, for_s: tuple[float, float], number: int = signal.SIGKILL) -> None:
        name = next(name for name, one in self._world.servers.by_name.items() if one is server)
        self._tell(f"kill -{number} nats-server {name}")
        self._world.book.heard_all = False
        server.stop(number)
        await self._wait(*for_s)
        server.start()
        self._tell(f"start nats-server {name}")

    async def upgrade_nats(self) -> None:
        """One server after the other ends by itself or by kill -9, and begins again as the newest version."""
        async with self._nats:
            outdated = self._world.servers.outdated
            if outdated:
                outdated[0].binary = SERVER
        if outdated:
            await self._without(outdated[0], (0.05, 1.0), self._chance.choice([signal.SIGTERM, signal.SIGKILL]))

    async def fill_a_disk(self) -> None:
        """nats-server is started again when there is room: it doesn't write on by itself (2.15, measured)."""
        servers = self._world.servers
        name = self._chance.choice(sorted(servers.disks))
        async with self._nats:
            self._tell(f"no room on the disk of nats-server {name}")
            ballast = fill_disk(servers.disks[name])
            await self._wait(0.5, 4)
            ballast.unlink()
            self._tell(f"room again on the disk of nats-server {name}")
            await self._restart(servers.by_name[name], (0.05, 0.5))

    async def _leader(self) -> NatsServer:
        """The server that leads what matters most just now; any, when nobody knows."""
        world, name = self._world, None
        with suppress(nats.errors.Error, TimeoutError):
            if self._chance.random() < 0.4:
                consumer = await world.js.consumer_info(world.names.watches_stream, CONSUMER, timeout=1)
                name = consumer.cluster and consumer.cluster.leader
            else:
                stream = self._chance.choice([world.names.events_stream, world.names.watches_stream])
                name = (await world.js.stream_info(stream)).cluster.leader  # type: ignore[union-attr] # is replicated
        return world.servers.by_name.get(name or "") or self._chance.choice(world.servers.all)

    # vCenter

    async def outage(self) -> None:
        effects: list[Effect] = [
            faults.gateway_unavailable(),
            faults.connection_reset(),
            faults.html_error(),
            faults.delayed(1.0),
            faults.truncated_json(),
            faults.service_unavailable(),
        ]
        async with self._vcenter:
            self._tell("vCenter's outage")
            effect, faulty = self._chance.choice(effects), self._world.vcenter.faults
            with faulty.during(effect, path="/tasks"), faulty.during(effect, path="/sdk"):
                await self._wait(0.5, 3)
            self._world.book.faulty_at = time.time()
            self._tell("vCenter is back")

    async def silence_vcenter(self) -> None:
        await self._without_vcenter(self._silence)

    async def delay_vcenter(self) -> None:
        await self._without_vcenter(self._delay)

    async def _without_vcenter(self, disturb: Callable[[Proxy, str], Awaitable[None]]) -> None:
        """A bridge that gets no answer to a login may not know its session, and can't log out of it."""
        replica, book = self._chance.choice(self._world.replicas), self._world.book
        vcenter = self._chance.choice(sorted(replica.vcenter_proxies))
        counts = self._world.vcenters[vcenter].sessions.counts
        logins = counts.logins
        book.disturbed_links += 1
        await disturb(replica.vcenter_proxies[vcenter], f"{replica.name}'s link to vCenter {vcenter}")
        book.disturbed_links -= 1
        book.excused_sessions += counts.logins - logins
        book.faulty_at = time.time()

    async def wipe_sessions(self) -> None:
        self._tell("vCenter forgets all sessions")
        self._world.vcenter.invalidate_sessions()

    async def restart_vcenter(self) -> None:
        """All sessions end, and the collectors of the history with them; the tasks are still there."""
        self._tell("vCenter restarts")
        self._world.vcenter.restart(forget=False)

    async def forget(self) -> None:
        """One task is gone for good, or refused for good."""
        tasks = [task for task in self._world.vcenter.tasks if task.id not in self._world.book.unseen_at]
        if self._gone == 2 or not tasks:
            return
        self._gone += 1
        task, denied = self._chance.choice(tasks).id, self._chance.random() < 0.3
        self._tell(f"vCenter {'refuses to show' if denied else 'forgets'} {task}")
        if denied:
            self._world.book.denied_at[task] = time.time()
            self._world.vcenter.deny(task)
        else:
            self._world.book.unseen_at[task] = time.time()
            self._world.vcenter.forget(task)

    async def hide_all(self) -> None:
        async with self._vcenter:
            tasks = [task.id for task in self._world.vcenter.tasks]
            self._tell("vCenter shows no task")
            for task in tasks:
                self._world.book.unseen_at.setdefault(task, time.time())
                self._world.vcenter.hide(task)
            await self._wait(0.5, 3)
            for task in tasks:
                self._world.vcenter.unhide(task)
            self._tell("vCenter shows its tasks again")
