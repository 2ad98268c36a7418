"""Relays are replaced one by one under load: a consumer's effects take place once each, in their order."""

import pytest

from tests.relay.conftest import StartRelay
from tests.relay.effects import Effects
from tests.relay.scene import Scene
from tests.relay.sharding.test_reshard import writing

AT_WORK = "SELECT count(*) = 2 FROM outbox_shard WHERE mode = '{mode}' AND wanted_mode IS NULL"


@pytest.mark.parametrize("mode", ["sequenced", "transactional"])
def test_relays_replaced_one_by_one_under_load_cost_no_effect_and_no_order(
    scene: Scene, start: StartRelay, mode: str
) -> None:
    """The leases are long: what hands over is the old relay's last act."""
    effects = Effects(scene.database, scene.bootstrap, scene.topic)
    if mode == "transactional":
        scene.transactional()
    relays = [start(lease="60")]
    scene.wait(f"SELECT mode = '{mode}' FROM outbox_shard")
    scene.session.execute("SELECT outbox_shards_set(2)")
    with effects.storing():
        scene.wait(AT_WORK.format(mode=mode))
        relays.append(start(lease="60"))
        with writing(scene):
            scene.wait("SELECT count(DISTINCT owner) = 2 FROM outbox_lease")
            for old, name in zip(relays, ("relay-3", "relay-4"), strict=True):
                new = start(lease="60")
                scene.wait(f"SELECT EXISTS (SELECT FROM outbox_relay WHERE instance = '{name}')")
                assert old.stop() == 0
                new.wait_for("relay.acknowledged", 2)
        scene.wait_until_through()
        known = scene.committed()
        effects.wait_for([id_ for id_, _ in known])
    assert effects.complaints(known) == []
    if mode == "transactional":
        assert scene.plain_complaints() == []
