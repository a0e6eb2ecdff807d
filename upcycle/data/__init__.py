# SPDX-License-Identifier: Apache-2.0
"""Where batches come from; every iterator has get_state() and set_state().

packages -> corpora -> tokenized: pinned packages to clean documents to arrays
of tokens (`prepare` runs it). denoising -> text: arrays of tokens to batches,
by Grain. seqio_tasks: any SeqIO mixture to the same batches.
packages -> glyphs, image_readers -> image_sets -> image_arrays: pinned packages
to arrays of images (`prepare_images` runs it). image_sources, image_folders,
augment -> image_batches -> images: those, TFDS or folders of files to batches
of transformed images.
"""
