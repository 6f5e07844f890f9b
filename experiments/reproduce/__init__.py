"""Every number of the documents from one command, with the band in which it is expected."""
