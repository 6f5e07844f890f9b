"""What a trained low-rank update looks like: section 7 and appendices G and H of the paper."""
