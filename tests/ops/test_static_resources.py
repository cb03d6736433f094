# SPDX-License-Identifier: Apache-2.0
"""What the compiled kernels do to memory is counted, and judged by the committed table."""

from __future__ import annotations

from pathlib import Path

import pytest
from static_resources import failures, slower

pytest.importorskip("triton")

from stc_kernels._triton._compile import amd_accesses, nvidia_accesses


def test_more_or_narrower_accesses_are_a_failure(tmp_path: Path):
    row = {
        "op": "gather_rows", "kernel": "move_rows", "dtype": "bfloat16", "target": "sm_90",
        "config": "BLOCK_ROWS=4", "loads": "16:2 4:1", "stores": "16:2", "local_accesses": "0",
    }  # fmt: skip
    committed = tmp_path / "table.csv"
    committed.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    assert slower([row], committed) == []
    assert slower([{**row, "config": "BLOCK_ROWS=8", "loads": "2:16"}], committed) == []
    (found,) = slower([{**row, "loads": "8:4 4:1"}], committed)
    assert found.startswith("loads 8:4 4:1, were 16:2 4:1: gather_rows move_rows")
    (found,) = slower([{**row, "local_accesses": "2"}], committed)
    assert found.startswith("uses local memory: gather_rows")
    assert failures([{**row, "spill_bytes": 12, "shared_bytes": 0, "limit_shared_bytes": 1}])


def test_accesses_are_read_off_the_assembly():
    ptx = """
    ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
    ld.global.L1::evict_last.b16 { %rs1 }, [ %rd2 + 0 ];
    cp.async.cg.shared.global [ %r5 + 0 ], [ %rd3 + 0 ], 0x10, %r6;
    st.global.v2.b32 [ %rd4 + 0 ], { %r1, %r2 };
    st.local.b32 [ %rd5 ], %r1;
    st.shared.v4.b32 [ %r7 ], { %r1, %r2, %r3, %r4 };
    """
    found = nvidia_accesses(ptx)
    assert (found.loads, found.stores, found.local) == ({16: 2, 2: 1}, {8: 1}, 1)
    assert found.per_kib == 1024 * 4 / 42
    amd = """
    global_load_dwordx4 v[0:3], v[4:5], off
    buffer_load_ushort v6, v7, s[0:3], 0 offen
    global_store_short_d16_hi v[8:9], v10, off
    scratch_store_dword off, v11, s32
    ds_read_b128 v[0:3], v4
    """
    found = amd_accesses(amd)
    assert (found.loads, found.stores, found.local) == ({16: 1, 2: 1}, {2: 1}, 1)
