"""The service and the command line around `seg_loss`."""
