"""Models as a user of imago writes them, in a package of one's own."""
