# SPDX-License-Identifier: Apache-2.0
"""`python -m stc_video.cli` is `stc`."""

from stc_video.cli import main

if __name__ == "__main__":
    main()
