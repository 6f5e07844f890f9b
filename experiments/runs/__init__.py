"""What runs of experiments share: tasks, settings, folders, records, the command line."""
