"""Data sets as others publish them: folders of `datasets`, repositories of the Hub, tars of WebDataset."""
