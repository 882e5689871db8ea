"""The loss under the names, and with the defaults and results, of torch and of Caffe."""
