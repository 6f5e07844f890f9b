"""What trained low-rank updates look like: section 7 and appendices G and H of the paper."""
