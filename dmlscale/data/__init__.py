"""From a dataset to the batches of one rank.

``sources`` yield labelled files, ``shards`` packs them, ``index`` opens the result, ``plan`` orders an epoch,
``reader`` and ``transforms`` make pixels, ``loader`` joins them. Nothing is imported here: the processes that
render a source should not wait for torch.
"""
