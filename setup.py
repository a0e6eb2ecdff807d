# SPDX-License-Identifier: Apache-2.0
"""For tools that still ask for setup.py; everything is in pyproject.toml."""

import setuptools

setuptools.setup()
