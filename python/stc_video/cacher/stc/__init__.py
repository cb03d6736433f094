# SPDX-License-Identifier: Apache-2.0
"""The ``stc`` policy of STC-Cacher (arXiv 2512.00891): a dense frame now and then."""
