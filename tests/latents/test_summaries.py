"""Summaries of records: what the whole record says, at a fraction of its reading, and never of a damaged one."""

import json
from pathlib import Path

import pytest

from ldm_vae.latents import summaries
from ldm_vae.latents.sealed import dump_json, seal, unseal
from ldm_vae.latents.shards import ShardRecord, numbers_digest, read_record
from ldm_vae.latents.statistics import ChannelMoments
from ldm_vae.latents.summaries import ShardSummary, read_summary
from ldm_vae.system.store import LocalStore
from tests.latents.written import SKIPPED, make_plan, write

PLAN = make_plan()


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    write(tmp_path, PLAN)
    return LocalStore(tmp_path)


def test_a_summary_says_what_the_record_says(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in range(4):
        stem = f"latents-{shard:05d}"
        record = read_record(store, stem=stem, plan_digest=PLAN.digest)
        assert record is not None
        with monkeypatch.context() as patch:
            patch.setattr(summaries, "read_record", lambda *_, **__: None)  # it isn't read as a whole
            found = read_summary(store, stem=stem, plan_digest=PLAN.digest)
        assert found == ShardSummary.of(record)
        numbers = range(4 * shard, min(4 * shard + 4, 15))
        assert (found.count, found.num_images) == (len(set(numbers) - SKIPPED), len(numbers))
        assert found.numbers == numbers_digest((i, i) for i in numbers) != numbers_digest((i, i + 1) for i in numbers)


def test_columns_may_look_like_the_end_of_the_rows(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    record = read_record(store, stem="latents-00000", plan_digest=PLAN.digest)
    assert record is not None
    record.rows[1].columns = {"moments": {"count": 1}, "a": [], "b": {"rows": [], "moments": {}}, "c": '"rows":['}
    record.rows[1].source = '],"moments":{ "rows":['
    store.write_whole("latents-00000.json", record.to_bytes())
    monkeypatch.setattr(summaries, "read_record", lambda *_, **__: None)
    assert read_summary(store, stem="latents-00000", plan_digest=PLAN.digest) == ShardSummary.of(record)


def test_damage_is_never_a_summary(store: LocalStore) -> None:
    """Any byte changed, a record cut off, of another plan, or of a shard of another size."""
    name = "latents-00003.json"
    content = store.read(name)
    for at in range(0, len(content), 23):
        changed = bytearray(content)
        changed[at] ^= 1
        store.write_whole(name, bytes(changed))
        assert read_summary(store, stem="latents-00003", plan_digest=PLAN.digest) is None, at
    for cut in (b"", content[:-3], content[: len(content) // 2], b"[]", b"{}"):
        store.write_whole(name, cut)
        assert read_summary(store, stem="latents-00003", plan_digest=PLAN.digest) is None
    store.write_whole(name, content)
    assert read_summary(store, stem="latents-00003", plan_digest="other") is None
    assert read_summary(store, stem="latents-00002", plan_digest=PLAN.digest) is not None
    store.write_whole("latents-00003.safetensors", b"short")
    assert read_summary(store, stem="latents-00003", plan_digest=PLAN.digest) is None
    store.remove("latents-00003.safetensors")
    assert read_summary(store, stem="latents-00003", plan_digest=PLAN.digest) is None


def test_records_of_earlier_versions_are_read_as_a_whole(store: LocalStore) -> None:
    values = unseal(store.read("latents-00001.json"))
    assert values is not None
    del values["summary"]
    store.write_whole("latents-00001.json", seal(values))
    record = read_record(store, stem="latents-00001", plan_digest=PLAN.digest)
    assert record is not None
    assert read_summary(store, stem="latents-00001", plan_digest=PLAN.digest) == ShardSummary.of(record)


@pytest.mark.parametrize("value", [{"a": 1, "b": "é\n"}, {}, {"name": "\udcff"}])
@pytest.mark.parametrize("indent", [None, 1])
def test_seals_hold_however_they_were_written(value: dict[str, object], indent: int | None) -> None:
    content = seal(value, indent=indent)
    assert unseal(content) == value
    assert json.loads(content)["digest"] in content.decode()
    assert unseal(content.replace(b"}", b',"c":2}')) is None
    assert unseal(dump_json({**value, "digest": "0" * 64})) is None


def test_a_record_without_rows(store: LocalStore) -> None:
    record = ShardRecord(stem="latents-00009", plan=PLAN.digest, size=0, sha256="", shape=[3, 4, 6], rows=[],
                         moments=ChannelMoments(), rounding={})  # fmt: skip
    store.write_whole("latents-00009.json", record.to_bytes())
    store.write_whole("latents-00009.safetensors", b"")
    found = read_summary(store, stem="latents-00009", plan_digest=PLAN.digest)
    assert found is not None
    assert (found.count, found.num_images) == (0, 0)
