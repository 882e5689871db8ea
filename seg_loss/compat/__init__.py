"""The loss in the words of others: `compat.torch` and `compat.caffe`."""
