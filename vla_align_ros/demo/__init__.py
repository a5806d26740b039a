"""The demonstration: the whole graph on topics, judged, filmed and written up in one report."""
