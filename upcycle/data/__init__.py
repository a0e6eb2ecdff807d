# SPDX-License-Identifier: Apache-2.0
"""Where batches come from; every iterator has get_state() and set_state().

packages -> corpora -> tokenized: pinned packages to clean documents to arrays
of tokens (`prepare` runs it). denoising -> text: arrays of tokens to batches,
by Grain. seqio_tasks: any SeqIO mixture to the same batches.
"""
