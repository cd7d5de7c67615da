"""Job files, clusters and the two command-line programs: the only room that knows both stages."""
