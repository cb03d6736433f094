# SPDX-License-Identifier: Apache-2.0
"""Where blocks lie that have left the window: device, host, disk, each with a byte budget."""

from __future__ import annotations

from stc_video.memory.stores.disk import DiskStore
from stc_video.memory.stores.files import StoredFile, read_record, sync, write_new, write_record
from stc_video.memory.stores.slabs import SlabStore
from stc_video.memory.stores.tiers import Store, TieredStore

__all__ = [
    "DiskStore",
    "SlabStore",
    "Store",
    "StoredFile",
    "TieredStore",
    "read_record",
    "sync",
    "write_new",
    "write_record",
]
