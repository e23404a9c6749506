"""`provision` and `check`: what is told of good and bad surroundings, and what is done about them."""

from __future__ import annotations

import datetime
import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig

import natscli
from commands import Ended, ran
from lab import EVENTS, PREFIX, Lab, NatsServer, as_user, guarded
from task_bridge.checks import connect_or_explain, expected_jetstream, run_checks
from task_bridge.domain.subjects import VERBS
from task_bridge.jetstream.provision import provision
from task_bridge.jetstream.streams import Streams
from task_bridge.simulator import faults, scenarios
from task_bridge.simulator.serve import serve_vcenter

REQUESTS, WATCHES, OBJECTS = "VCENTER_TASKS_REQUESTS", "VCENTER_TASKS_WATCHES", "OBJ_VCENTER_TASKS_RESULTS"
FOLLOW_REQUESTS, FOLLOWS = "VCENTER_TASKS_FOLLOW_REQUESTS", "VCENTER_TASKS_FOLLOWS"
QUEUES = (REQUESTS, WATCHES, FOLLOW_REQUESTS, FOLLOWS)
PUBLISHED = (
    f"{PREFIX}.internal.watches.>",
    f"{PREFIX}.internal.put.>",
    f"{PREFIX}.internal.follows.>",
    f"{PREFIX}.follows.>",
    f"{PREFIX}.internal.replicas",
    f"{PREFIX}.rejected",
    *(f"$JS.API.STREAM.INFO.{stream}" for stream in (*QUEUES, EVENTS, OBJECTS)),
    *(f"$JS.API.CONSUMER.INFO.{stream}.bridge" for stream in QUEUES),
    *(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.bridge" for stream in QUEUES),
    *(f"$JS.ACK.{stream}.bridge.>" for stream in QUEUES),
    *(f"$JS.API.STREAM.MSG.GET.{stream}" for stream in (WATCHES, FOLLOWS, EVENTS, OBJECTS)),
    *(f"$JS.API.DIRECT.GET.{stream}" for stream in (WATCHES, FOLLOWS, EVENTS, f"{EVENTS}.>")),
    *(f"$JS.API.STREAM.MSG.DELETE.{stream}" for stream in (WATCHES, FOLLOWS)),
    f"$JS.API.STREAM.PURGE.{OBJECTS}",
    "$O.VCENTER_TASKS_RESULTS.C.>",
    "$O.VCENTER_TASKS_RESULTS.M.>",
)


def nats_only(lab: Lab, **more: str) -> dict[str, str]:
    return {"BRIDGE_NATS_URL": lab.server.url, **more}


async def configurations(lab: Lab) -> dict[str, Any]:
    """All streams and their consumers as nats-server has them."""
    found: dict[str, Any] = {}
    for info in await lab.js.streams_info():
        name = str(info.config.name)
        consumers = [consumer.config for consumer in await lab.js.consumers_info(name)]
        found[name] = (info.config, consumers)
    return found


async def states(lab: Lab) -> dict[str, Any]:
    """What lies in all streams, and what their consumers have taken and wait for."""
    found: dict[str, Any] = {}
    for info in await lab.js.streams_info():
        consumers = await lab.js.consumers_info(str(info.config.name))
        told = [(one.name, one.delivered, one.ack_floor, one.num_pending, one.num_waiting) for one in consumers]
        found[str(info.config.name)] = (info.state, told)
    return found


def failures(of: Ended) -> list[str]:
    return [line for line in of.out if line.startswith("FAIL")]


class TestProvision:
    async def test_it_makes_what_is_missing_and_has_nothing_to_say_the_next_time(
        self, lab: Lab, tmp_path: Path
    ) -> None:
        first = await ran("provision", directory=tmp_path, environment=nats_only(lab))
        again = await ran("provision", directory=tmp_path, environment=nats_only(lab))
        assert (first.code, again.code) == (0, 0)
        assert f"stream {EVENTS} is missing." in first.out
        assert again.out == ["Everything matches the settings."]
        async with lab.bridge(provision="verify"):
            pass

    async def test_check_changes_nothing_and_tells_what_is_missing_with_exit_code_1(
        self, lab: Lab, tmp_path: Path
    ) -> None:
        code, out, _ = await ran("provision", "--check", directory=tmp_path, environment=nats_only(lab))
        assert (code, len(out)) == (1, 12)
        assert await lab.js.streams_info() == []

    async def test_what_differs_is_told_and_only_that_is_changed(self, lab: Lab, tmp_path: Path) -> None:
        await ran("provision", directory=tmp_path, environment=nats_only(lab))
        config = (await lab.js.stream_info(EVENTS)).config
        await lab.js.update_stream(config.evolve(max_age=3600.0, max_bytes=10_000_000))
        wanted = nats_only(lab, BRIDGE_EVENTS_MAX_AGE="2h", BRIDGE_ACK_WAIT="20s")
        checked = await ran("provision", "--check", directory=tmp_path, environment=wanted)
        for_machines = await ran("provision", "--check", "--json", directory=tmp_path, environment=wanted)
        assert (checked.code, for_machines.code) == (0, 0)
        differences = [json.loads(line) for line in for_machines.out]
        of_events = {"where": f"stream {EVENTS}", "field": "max_age", "wanted": 7200.0, "found": 3600.0}
        assert {**of_events, "unsafe": False} in differences
        assert f"stream {EVENTS}: max_age is 3600 s, the bridge would make it 7200 s." in checked.out
        assert (await lab.js.stream_info(EVENTS)).config.max_age == 3600.0
        changed = await ran("provision", directory=tmp_path, environment=wanted)
        assert (changed.code, changed.out[:-2]) == (0, checked.out[:-1])
        now = (await lab.js.stream_info(EVENTS)).config
        assert (now.max_age, now.max_bytes) == (7200.0, 10_000_000)
        assert (await lab.js.consumer_info(WATCHES, "bridge")).config.ack_wait == 20.0
        assert (await lab.js.stream_info("OBJ_VCENTER_TASKS_RESULTS")).config.max_age == 7200.0

    async def test_what_safety_needs_is_put_right(self, lab: Lab, tmp_path: Path) -> None:
        await lab.js.add_stream(StreamConfig(name=EVENTS, subjects=[f"{PREFIX}.internal.put.>"]))
        assert (await ran("provision", directory=tmp_path, environment=nats_only(lab))).code == 0
        async with lab.bridge(provision="verify"):
            pass

    async def test_what_cannot_be_changed_stays_and_the_way_out_is_told_with_exit_code_1(
        self, lab: Lab, tmp_path: Path
    ) -> None:
        subjects = [f"{PREFIX}.internal.watches.>"]
        await lab.js.add_stream(StreamConfig(name=WATCHES, subjects=subjects, retention=RetentionPolicy.LIMITS))
        await lab.js.add_consumer(WATCHES, ConsumerConfig(durable_name="bridge", ack_policy="none"))  # type: ignore[arg-type] # as JSON has it
        code, _, err = await ran("provision", directory=tmp_path, environment=nats_only(lab))
        assert code == 1
        assert any(f"nats stream rm {WATCHES}" in line for line in err)
        assert any(f"nats consumer rm {WATCHES} bridge" in line for line in err)
        assert (await lab.js.stream_info(WATCHES)).config.retention == RetentionPolicy.LIMITS

    async def test_a_change_that_nats_server_refuses_is_told_with_exit_code_1(self, lab: Lab, tmp_path: Path) -> None:
        await ran("provision", directory=tmp_path, environment=nats_only(lab))
        three = nats_only(lab, BRIDGE_STREAM_REPLICAS="3")
        code, _, err = await ran("provision", directory=tmp_path, environment=three)
        if code == 0 and (await lab.js.stream_info(EVENTS)).config.num_replicas == 3:
            pytest.skip("this nats-server takes three replicas alone, as 2.12 does")
        assert code == 1
        assert any(line.startswith(f"stream {EVENTS}: nats-server refuses the change") for line in err)

    async def test_print_needs_no_nats(self, tmp_path: Path) -> None:
        given = {"BRIDGE_EVENTS_MAX_AGE": "1d", "BRIDGE_STREAM_REPLICAS": "3", "BRIDGE_NATS_JS_DOMAIN": "hub"}
        code, out, _ = await ran("provision", "--print", directory=tmp_path, environment=given)
        assert (code, len(out)) == (0, 12)
        assert all(line.startswith("nats --js-domain=hub ") for line in out)
        assert out[10] == (
            "nats --js-domain=hub stream add VCENTER_TASKS_EVENTS '--description=Events of watched tasks, and "
            "rejections' '--subjects=vcenter.tasks.internal.put.>' --subjects=vcenter.tasks.rejected "
            "'--subjects=vcenter.tasks.follows.>' --retention=limits --storage=file --discard=old --replicas=3 "
            "--max-age=86400s --compression=s2 "
            "--allow-direct '--transform-source=vcenter.tasks.internal.put.>' "
            "'--transform-destination=vcenter.tasks.events.>' '--republish-source=vcenter.tasks.events.>' "
            "'--republish-destination=vcenter.tasks.events.>' --defaults"
        )

    async def test_what_is_printed_makes_exactly_what_it_would_make_itself(self, lab: Lab, tmp_path: Path) -> None:
        printed = await ran("provision", "--print", directory=tmp_path, environment=nats_only(lab))
        for line in printed.out:
            await natscli.run(lab.client, line)
        checked = await ran("provision", "--check", directory=tmp_path, environment=nats_only(lab))
        assert (checked.code, checked.out) == (0, ["Everything matches the settings."])
        by_hand = await configurations(lab)
        for stream in by_hand:
            await lab.js.delete_stream(stream)
        await ran("provision", directory=tmp_path, environment=nats_only(lab))
        assert by_hand == await configurations(lab)
        async with lab.bridge(provision="verify"):
            pass

    @pytest.mark.parametrize("denied", ["STREAM.INFO.VCENTER_TASKS_REQUESTS", "STREAM.CREATE.VCENTER_TASKS_REQUESTS"])
    async def test_a_permission_that_is_missing_is_named_with_exit_code_4(self, tmp_path: Path, denied: str) -> None:
        with guarded(tmp_path, f'publish: {{deny: ["$JS.API.{denied}"]}}') as server:
            code, _, err = await ran("provision", directory=tmp_path, environment=as_user("u", server))
        assert (code, len(err)) == (4, 1)
        assert f'permissions violation for publish to "$JS.API.{denied}"' in err[0]

    async def test_a_nats_that_is_away_is_told_with_exit_code_4(self, lab: Lab, tmp_path: Path) -> None:
        lab.server.stop()
        code, _, err = await ran("provision", directory=tmp_path, environment=nats_only(lab))
        assert (code, len(err)) == (4, 1)
        assert "BRIDGE_NATS_URL" in err[0]


class TestProvisionConsumer:
    COMPLETED = f"{PREFIX}.events.*.*.completed.*"

    async def test_it_makes_a_durable_that_workers_pull_from_and_nothing_the_next_time(
        self, lab: Lab, tmp_path: Path
    ) -> None:
        words = ("provision", "--consumer", "workflows", "--filter", self.COMPLETED)
        first, again = [await ran(*words, directory=tmp_path, environment=nats_only(lab)) for _ in range(2)]
        assert (first.code, again.code) == (0, 0)
        assert f"consumer {EVENTS}/workflows is missing." in first.out
        assert again.out == ["Everything matches the settings."]
        config = (await lab.js.consumer_info(EVENTS, "workflows")).config
        assert (config.deliver_subject, config.ack_policy, config.deliver_policy) == (None, "explicit", "new")
        assert (config.ack_wait, config.max_deliver, config.filter_subject) == (60.0, 1000, self.COMPLETED)

    async def test_events_are_pulled_from_it(self, lab: Lab, tmp_path: Path) -> None:
        words = ("provision", "--consumer", "w", "--filter", self.COMPLETED)
        await ran(*words, directory=tmp_path, environment=nats_only(lab))
        async with lab.bridge():
            task = lab.vcenter.create(scenarios.succeeds(0.1))
            await lab.ask("watch", task)
            (message,) = await (await lab.js.pull_subscribe_bind("w", EVENTS)).fetch(1, timeout=10)
        assert json.loads(message.data)["subject"] == task

    @pytest.mark.parametrize("before", [["completed.*"], ["completed.*", "abandoned.*"]])
    @pytest.mark.parametrize("after", [["stalled"], ["stalled", "abandoned.*"]])
    async def test_other_filters_replace_those_it_has_and_check_only_tells(
        self, lab: Lab, tmp_path: Path, before: list[str], after: list[str]
    ) -> None:
        def words(kinds: list[str]) -> list[str]:
            filters = [word for kind in kinds for word in ("--filter", f"{PREFIX}.events.*.*.{kind}")]
            return ["provision", "--consumer", "w", *filters]

        await ran(*words(before), directory=tmp_path, environment=nats_only(lab))
        checked = await ran(*words(after), "--check", directory=tmp_path, environment=nats_only(lab))
        assert (checked.code, "filters is" in checked.out[0]) == (0, True)
        changed = await ran(*words(after), directory=tmp_path, environment=nats_only(lab))
        assert (changed.code, changed.err) == (0, [])
        config = (await lab.js.consumer_info(EVENTS, "w")).config
        found = config.filter_subjects or [config.filter_subject]
        assert found == [f"{PREFIX}.events.*.*.{kind}" for kind in after]

    @pytest.mark.parametrize("more", [{"ack_policy": "none"}, {"ack_policy": "explicit", "deliver_subject": "x"}])
    async def test_another_kind_of_consumer_under_its_name_stays_with_exit_code_1(
        self, lab: Lab, tmp_path: Path, more: dict[str, Any]
    ) -> None:
        await ran("provision", directory=tmp_path, environment=nats_only(lab))
        await lab.js.add_consumer(EVENTS, durable_name="w", filter_subject=self.COMPLETED, **more)
        words = ("provision", "--consumer", "w", "--filter", self.COMPLETED)
        code, _, err = await ran(*words, directory=tmp_path, environment=nats_only(lab))
        assert code == 1
        assert any(f"nats consumer rm {EVENTS} w" in line for line in err), err

    @pytest.mark.parametrize(
        ("words", "reason"),
        [
            (["--consumer", "w"], "need each other"),
            (["--filter", COMPLETED], "need each other"),
            (["--consumer", "a.b", "--filter", COMPLETED], "can't be a consumer's name"),
            (["--consumer", "w", "--filter", f"{PREFIX}.watch"], "matches no event"),
            (["--consumer", "w", "--filter", f"{PREFIX}.events.>.x"], "matches no event"),
            (["--consumer", "w", "--filter", f"{PREFIX}.events."], "matches no event"),
            (["--consumer", "w", "--filter", f"{PREFIX}.follow"], "matches no event"),
        ],
    )
    async def test_what_cannot_be_a_consumer_is_told_with_exit_code_2(
        self, lab: Lab, tmp_path: Path, words: list[str], reason: str
    ) -> None:
        code, _, err = await ran("provision", *words, directory=tmp_path, environment=nats_only(lab))
        plain = " ".join(" ".join(err).replace("│", " ").split())
        assert (code, reason in plain) == (2, True), err
        assert await lab.js.streams_info() == []

    async def test_what_is_printed_makes_exactly_what_it_would_make_itself(self, lab: Lab, tmp_path: Path) -> None:
        words = ("--consumer", "w", "--filter", self.COMPLETED, "--filter", f"{PREFIX}.rejected")
        printed = await ran("provision", "--print", *words, directory=tmp_path, environment=nats_only(lab))
        for line in printed.out:
            await natscli.run(lab.client, line)
        checked = await ran("provision", "--check", *words, directory=tmp_path, environment=nats_only(lab))
        assert (checked.code, checked.out) == (0, ["Everything matches the settings."])


class TestCheck:
    @pytest.mark.parametrize("provisioned", [True, False], ids=["provisioned", "new"])
    async def test_all_is_well_and_nothing_is_left_behind(self, lab: Lab, tmp_path: Path, provisioned: bool) -> None:
        await lab.listen()
        if provisioned:
            await ran("provision", directory=tmp_path, environment=nats_only(lab))
        checked = await ran("check", directory=tmp_path, environment=lab.environment())
        assert (checked.code, failures(checked), checked.err) == (0, [], [])
        assert any(line.startswith("ok    vCenter lab tasks:") for line in checked.out)
        for_machines = await ran("check", "--json", directory=tmp_path, environment=lab.environment())
        assert {json.loads(line)["result"] for line in for_machines.out} <= {"ok", "note"}
        assert any(line.startswith("ok    vCenter lab classic tasks:") for line in checked.out)
        assert (len(lab.vcenter.sessions.live), lab.vcenter.sessions.counts.logins) == (0, 4)
        assert all(info.state.messages == 0 for info in await lab.js.streams_info())
        assert lab.live == []

    async def test_a_nats_that_is_away_is_told_and_vcenter_is_looked_at_all_the_same(
        self, lab: Lab, tmp_path: Path
    ) -> None:
        lab.server.stop()
        checked = await ran("check", directory=tmp_path, environment=lab.environment())
        assert (checked.code, len(failures(checked))) == (1, 1)
        assert "BRIDGE_NATS_URL" in failures(checked)[0]
        assert any(line.startswith("ok    vCenter lab login:") for line in checked.out)

    async def test_a_wrong_password_is_tried_once_and_never_shown(self, lab: Lab, tmp_path: Path) -> None:
        wrong = lab.environment(BRIDGE_VCENTERS__LAB__PASSWORD="a-wrong-secret")
        checked = await ran("check", directory=tmp_path, environment=wrong)
        assert (checked.code, len(failures(checked))) == (1, 1)
        assert "BRIDGE_VCENTERS__LAB__PASSWORD" in failures(checked)[0]
        assert lab.vcenter.sessions.counts.failed_logins == 1
        assert "a-wrong-secret" not in "".join([*checked.out, *checked.err])

    async def test_an_untrusted_certificate_is_told_and_no_password_is_sent(self, lab: Lab, tmp_path: Path) -> None:
        async with serve_vcenter(lab.vcenter, ssl=self_signed(tmp_path)) as url:
            given = lab.environment(BRIDGE_VCENTERS__LAB__URL=url)
            checked = await ran("check", directory=tmp_path, environment=given)
        assert (checked.code, len(failures(checked))) == (1, 1)
        assert "BRIDGE_VCENTERS__LAB__CA_FILE" in failures(checked)[0]
        assert lab.vcenter.sessions.counts.failed_logins == 0

    async def test_a_vcenter_that_is_away_is_told(self, lab: Lab, tmp_path: Path) -> None:
        given = lab.environment(BRIDGE_VCENTERS__LAB__URL="http://127.0.0.1:9")
        checked = await ran("check", directory=tmp_path, environment=given)
        assert (checked.code, len(failures(checked))) == (1, 1)
        assert "refuses the connection" in failures(checked)[0]

    @pytest.mark.parametrize(("vim", "code"), [("auto", 0), ("push", 1)])
    async def test_without_the_old_api_only_who_asked_for_it_has_failed(
        self, lab: Lab, tmp_path: Path, vim: str, code: int
    ) -> None:
        lab.vcenter.faults.add(faults.route_not_found(), path="/sdk")
        given = lab.environment(BRIDGE_VCENTERS__LAB__VIM=vim)
        checked = await ran("check", directory=tmp_path, environment=given)
        assert (checked.code, len(failures(checked))) == (code, code)
        (told,) = [line for line in checked.out if "classic tasks" in line]
        assert told.startswith("FAIL" if code else "note")
        assert ("BRIDGE_VCENTERS__LAB__VIM=off" in told) is (not code)

    @pytest.mark.parametrize(
        ("verb", "denied"),
        [
            *(("publish", subject) for subject in PUBLISHED),
            *(("subscribe", f"{PREFIX}.api.{verb}") for verb in VERBS),
            ("subscribe", f"{PREFIX}.follows.>"),
            ("subscribe", f"{PREFIX}.internal.replicas"),
            ("subscribe", "$SRV.>"),
        ],
    )
    async def test_each_right_that_the_bridges_user_lacks_is_told_by_its_subject(
        self, lab: Lab, tmp_path: Path, verb: str, denied: str
    ) -> None:
        with guarded(tmp_path, f'{verb}: {{deny: ["{denied}"]}}') as server:
            login = {"urls": server.url, "given_password": "p"}
            by_operator = lab.settings(nats={**login, "user": "operator"})
            async with connect_or_explain(by_operator) as client:
                await provision(Streams(client), expected_jetstream(by_operator), create=True)
            found = [finding async for finding in run_checks(lab.settings(nats={**login, "user": "u"}, vcenters={}))]
        (told,) = [finding.message for finding in found if finding.about == "permissions" and not finding.ok]
        assert told.startswith(f"not allowed: {verb} to {denied}; ")
        assert "deploy/nats" in told

    async def test_inboxes_that_the_user_may_not_use_are_told(self, lab: Lab, tmp_path: Path) -> None:
        with guarded(tmp_path, 'subscribe: {deny: ["_INBOX_u.>", "_INBOX.bridge.>"]}') as server:
            checked = await ran("check", directory=tmp_path, environment=lab.environment(**as_user("u", server)))
        assert checked.code == 1
        assert any("_inbox.bridge." in line.lower() for line in failures(checked)), checked.out

    @pytest.mark.parametrize("inbox", ["_INBOX_u", "_INBOX.bridge", "_MINE"])
    async def test_a_user_with_any_of_its_inboxes_has_what_it_needs(self, lab: Lab, tmp_path: Path, inbox: str) -> None:
        others = {"_INBOX_u", "_INBOX.bridge", "_MINE", "_INBOX.x"} - {inbox}
        denied = ", ".join(f'"{other}.>"' for other in sorted(others))
        with guarded(tmp_path, f"subscribe: {{deny: [{denied}]}}") as server:
            given = lab.environment(**as_user("u", server))
            if inbox == "_MINE":
                given["BRIDGE_NATS_INBOX_PREFIX"] = inbox
            checked = await ran("check", directory=tmp_path, environment=given)
        assert (checked.code, failures(checked)) == (0, [])

    @pytest.mark.parametrize("denied", ["_INBOX.>", "_R_.>"])
    async def test_a_right_that_the_bridge_can_do_without_is_noted(self, lab: Lab, tmp_path: Path, denied: str) -> None:
        with guarded(tmp_path, f'publish: {{deny: ["{denied}"]}}') as server:
            checked = await ran("check", directory=tmp_path, environment=lab.environment(**as_user("u", server)))
        assert (checked.code, failures(checked)) == (0, [])
        assert any(line.startswith(f"note  permissions: not allowed: publish to {denied};") for line in checked.out)

    @pytest.mark.parametrize(
        ("denied", "named"),
        [
            (
                "$JS.API.STREAM.CREATE.>",
                ["STREAM.CREATE.VCENTER_TASKS_REQUESTS", "STREAM.CREATE.OBJ_VCENTER_TASKS_RESULTS"],
            ),
            ("$JS.API.CONSUMER.DURABLE.CREATE.>", [f"CONSUMER.DURABLE.CREATE.{WATCHES}.bridge"]),
        ],
    )
    async def test_a_user_who_may_not_create_what_is_missing_is_told_unless_nobody_asks_it_to(
        self, lab: Lab, tmp_path: Path, denied: str, named: list[str]
    ) -> None:
        with guarded(tmp_path, f'publish: {{deny: ["{denied}"]}}') as server:
            given = lab.environment(**as_user("u", server))
            new = await ran("check", directory=tmp_path, environment=given)
            await ran("provision", directory=tmp_path, environment=as_user("operator", server))
            provisioned = await ran("check", directory=tmp_path, environment=given)
        streams, permissions = failures(new)
        assert "run `task-bridge provision` as a user who may" in streams
        assert all(f"publish to $JS.API.{one}" in permissions for one in named)
        assert (provisioned.code, failures(provisioned)) == (0, [])

    async def test_asking_what_is_permitted_changes_nothing_and_is_heard_by_nobody(
        self, lab: Lab, tmp_path: Path
    ) -> None:
        await ran("provision", directory=tmp_path, environment=nats_only(lab))
        await lab.js.publish(f"{PREFIX}.watch", b"{}")
        await lab.js.publish(f"{PREFIX}.internal.watches.lab.t", b"{}")
        heard: list[str] = []

        async def hear(message: Msg) -> None:
            heard.append(message.subject)

        await lab.client.subscribe(f"{PREFIX}.>", cb=hear)
        await lab.client.subscribe("$O.>", cb=hear)
        await lab.client.subscribe("$JS.ACK.>", cb=hear)
        before = await states(lab)
        checked = await ran("check", directory=tmp_path, environment=lab.environment())
        assert (checked.code, failures(checked)) == (0, [])
        assert (await states(lab), heard) == (before, [])

    async def test_a_nats_without_jetstream_is_told(self, lab: Lab, tmp_path: Path) -> None:
        directory = tmp_path / "bare"
        directory.mkdir()
        config = directory / "nats.conf"
        config.write_text("accounts {A {users: [{user: u, password: p}]}}")
        bare = NatsServer(directory, "-c", str(config))
        bare.start()
        try:
            given = lab.environment(BRIDGE_NATS_URL=bare.url, BRIDGE_NATS_USER="u", BRIDGE_NATS_PASSWORD="p")
            checked = await ran("check", directory=tmp_path, environment=given)
        finally:
            bare.stop()
        assert (checked.code, len(failures(checked))) == (1, 1)
        assert failures(checked)[0].startswith("FAIL  JetStream: ")

    async def test_wrong_settings_are_told_with_exit_code_2(self, lab: Lab, tmp_path: Path) -> None:
        wrong = lab.environment(BRIDGE_ACK_WAIT="soon")
        code, out, err = await ran("check", directory=tmp_path, environment=wrong)
        assert (code, out, len(err)) == (2, [], 1)
        assert err[0].startswith("BRIDGE_ACK_WAIT")


def self_signed(directory: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vcenter.example.com")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    pem = directory / "vcenter.pem"
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem.write_bytes(key.private_bytes(*private) + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context
