"""What `ldm-vae encode` tells at its end."""

from __future__ import annotations

from dataclasses import dataclass, field

from ldm_vae.system.telling import counted


@dataclass(kw_only=True)
class EncodeSummary:
    """What the output holds, and what this process did of it."""

    output: str
    """Path or address."""
    num_images: int
    """Images of the collection."""
    crops: int
    """Squares of each image, which all count as rows."""
    num_rows: int
    num_skipped: int
    num_shards: int
    num_bytes: int
    """Bytes of all shards."""
    encoded_images: int
    """Images that this process encoded."""
    encoded_shards: int
    """Shards that this process wrote."""
    damaged_shards: int
    """Shards that this process found damaged; they were encoded again."""
    seconds: float
    skipped_list: str
    """What lists the images that were skipped."""
    noun: str = "image"
    """What each of them is: an image or a sound."""
    num_by_device: int | None = None
    """Images of `encoded_images` whose JPEG files the device decoded; None where it wasn't asked to."""
    nodes: list[str] = field(default_factory=list)
    """What each node of a cluster did, a line each."""

    def __str__(self) -> str:
        size = f"{self.num_bytes / 1e6:,.1f} MB"
        of = f"{self.num_rows:,} latents of {counted(self.num_images, self.noun)}"
        of += f", {self.crops} crops each," if self.crops > 1 else ""
        done = f"{of} in {counted(self.num_shards, 'shard')}, {size}"
        skipped = f"; {self.num_skipped:,} skipped, listed in {self.skipped_list}" if self.num_skipped else ""
        skipped += f"; {counted(self.damaged_shards, 'damaged shard')} encoded again" if self.damaged_shards else ""
        rate = self.encoded_images / self.seconds if self.seconds > 0 else 0.0
        by_device = self.num_by_device
        told = "" if by_device is None else f"; the device decoded the files of {by_device:,}, Pillow the others"
        return (
            f"{self.output}: {done}{skipped}\n"
            f"this process encoded {counted(self.encoded_images, self.noun)} in {self.seconds:,.1f} s, "
            f"{rate:,.1f} {self.noun}s/s{told}" + "".join(f"\n{line}" for line in self.nodes)
        )
