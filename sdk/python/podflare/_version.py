# SPDX-License-Identifier: Apache-2.0
"""The version of the SDK, alone in a file so that the build reads it without importing httpx."""

__version__ = "0.1.0"
