# SPDX-License-Identifier: Apache-2.0
"""What a training step takes on hardware that one does not have.

A step is compiled, not run: `topologies` makes devices of a name, `batches`
shapes of a config's data, `program` compiles, `hlo` reads collectives off the
result, `chips` and `estimate` say what it would take, `advice` what to change.
Nothing is imported here: `topologies` has to set variables before JAX is.
"""
